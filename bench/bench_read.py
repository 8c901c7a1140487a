"""What reading a delta file costs as a copy in memory, the default, and as a map (--load-mode mmap).

  bench_read.py build/cpp/bin/libllama.so math.dq.gguf

prints for each form the median time, and processor time, until the file can serve (all of it in memory, its header checked; the
file is in the page cache), and what the process then has: memory of its own, which the system cannot take back, and pages of files, which it can.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

N_REPEATS = 9
N_ERR_BYTES = 1024


class FileParams(ctypes.Structure):
    """dqrelo_file_params."""

    _fields_ = (
        ("header_only", ctypes.c_bool),
        ("verify", ctypes.c_bool),
        ("use_mmap", ctypes.c_bool),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("decode_callback", ctypes.c_void_p),
        ("decode_callback_data", ctypes.c_void_p),
        ("on_cpu", ctypes.c_bool),
    )


def memory_mib() -> tuple[float, float]:
    """MiB of this process: its own, and pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def measure(library: Path, path: Path, use_mmap: bool) -> None:
    """Prints one form's row."""
    lib = ctypes.CDLL(str(library))
    lib.dqrelo_file_open.restype = ctypes.c_void_p
    lib.dqrelo_file_open.argtypes = (ctypes.c_char_p, FileParams, ctypes.c_char_p, ctypes.c_size_t)
    lib.dqrelo_file_free.argtypes = (ctypes.c_void_p,)
    err = ctypes.create_string_buffer(N_ERR_BYTES)
    times_ms, processor_ms = [], []
    own_mib = file_mib = 0.0
    for _ in range(N_REPEATS):
        before = memory_mib()
        begun, begun_processor = time.perf_counter(), time.process_time()
        handle = lib.dqrelo_file_open(str(path).encode(), FileParams(use_mmap=use_mmap), err, N_ERR_BYTES)
        times_ms.append(1000 * (time.perf_counter() - begun))
        processor_ms.append(1000 * (time.process_time() - begun_processor))
        if handle is None:
            sys.exit(err.value.decode())
        own_mib, file_mib = (after - first for after, first in zip(memory_mib(), before, strict=True))
        lib.dqrelo_file_free(handle)
    form = "map" if use_mmap else "copy"
    print(
        f"{form:5} {statistics.median(times_ms):8.1f} ms {statistics.median(processor_ms):8.1f} ms of processor "
        f"{own_mib:8.1f} MiB own {file_mib:8.1f} MiB of files"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="libllama of this project")
    parser.add_argument("delta", type=Path)
    parser.add_argument("--form", choices=("copy", "map"), help="one form only, in this process")
    args = parser.parse_args()
    if args.form is not None:
        measure(args.library, args.delta, args.form == "map")
        return
    print(
        f"{args.delta.name}: {args.delta.stat().st_size / 1e6:.1f} MB, {platform.machine()}, median of {N_REPEATS}",
        flush=True,
    )
    args.delta.read_bytes()  # This brings the file into the page cache.
    for form in ("copy", "map"):
        subprocess.run([sys.executable, __file__, args.library, args.delta, "--form", form], check=True)


if __name__ == "__main__":
    main()
