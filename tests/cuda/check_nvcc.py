"""Compile the CUDA kernels for one architecture: no warning, no spilled register, no local memory, shared memory within what every device has.

check_nvcc.py NVCC ARCH SOURCE... -- OPTION...
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_SHARED_BYTES = 48 * 1024
FLAGS = [
    "-std=c++17",
    "-use_fast_math",
    "-Werror",
    "all-warnings",
    "-Xptxas",
    "-v,-warn-spills",
]  # The flag for fast maths is that of ggml-cuda.


def faults(report: str) -> list[str]:
    """What ptxas reports that a kernel must not have."""
    found = [
        f"{stack} bytes of stack, {stores} and {loads} bytes spilled"
        for stack, stores, loads in re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
        )
        if (stack, stores, loads) != ("0", "0", "0")
    ]
    found += [
        f"{n} bytes of shared memory" for n in re.findall(r"(\d+) bytes smem", report) if int(n) > MAX_SHARED_BYTES
    ]
    return found


def main() -> None:
    nvcc, arch, *rest = sys.argv[1:]
    sources, options = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    n_kernels = 0
    for source in sources:
        with tempfile.TemporaryDirectory() as directory:
            command = [nvcc, *FLAGS, f"-arch={arch}", *options, "-c", source, "-o", str(Path(directory) / "kernel.o")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = done.stdout + done.stderr
        if done.returncode != 0:
            sys.exit(f"{source}, {arch}:\n{report}")
        if found := faults(report):
            sys.exit(f"{source}, {arch}: {'; '.join(found)}")
        used = re.findall(r"Used (\d+) registers", report)
        n_kernels += len(used)
        print(f"{Path(source).name} {arch}: registers {', '.join(used) or '-'}")
    if n_kernels == 0:
        sys.exit("ptxas reported no kernel")


if __name__ == "__main__":
    main()
