"""Instructions that the compiled CUDA kernel spends on 32 signs, by architecture.

  count_sass.py --ggml LLAMA_CPP/ggml/include

compiles ggml_ops/cuda/matmul-rows.cu with nvcc and reads the listing of nvdisasm (PyPI: nvidia-cuda-nvdisasm). The loop over signs is the innermost
one around the byte products (IDP); there is one for one row of a delta and one for two, each of 2 words from 4 rows of the matrix a turn.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "ggml_ops" / "cuda" / "matmul-rows.cu"
WORDS = 2 * 4  # 32-bit words of signs in a turn of the loop
PRODUCTS_WORD = 16  # IDP for a word and a row: each byte plane takes 8.
GROUPS = {
    "IDP": ("IDP",),
    "logic, shifts": ("LOP3", "SHF", "LOP", "SHL", "SHR"),
    "moves": ("MOV", "IMAD.MOV", "UMOV"),
    "loads": ("LDG", "LD."),
    "local memory": ("LDL", "STL"),
}


def loops(listing: str) -> list[list[str]]:
    """Opcodes of each innermost loop that has byte products, shortest first."""
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    found: list[list[str]] = []
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif op := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            opcodes.append(op[1])
            target = re.search(r"\.L_x_\d+", op[2])
            if op[1].startswith("BRA") and target and target[0] in labels:
                found.append(opcodes[labels[target[0]] :])
    with_products = [body for body in found if any(code.startswith("IDP") for code in body)]
    sizes = {sum(code.startswith("IDP") for code in body) for body in with_products}
    wanted = [WORDS * PRODUCTS_WORD * rows for rows in (1, 2)]
    if not sizes.issuperset(wanted):
        raise SystemExit(f"loops with {wanted} byte products expected, found {sorted(sizes)}")
    return [min((b for b in with_products if sum(c.startswith("IDP") for c in b) == n), key=len) for n in wanted]


def count(body: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for code in body:
        counts[next((name for name, starts in GROUPS.items() if code.startswith(starts)), "other")] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, required=True, help="ggml's include directory")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--arch", nargs="+", default=["sm_75", "sm_86", "sm_90", "sm_120"])
    args = parser.parse_args()

    names = [*GROUPS, "other"]
    print("| | rows | " + " | ".join(names) + " | all for 32 signs |\n" + "|---" * (len(names) + 3) + "|")
    for arch in args.arch:
        with tempfile.TemporaryDirectory() as directory:
            cubin = Path(directory) / "kernel.cubin"
            include = ["-I", str(args.ggml), "-I", str(SOURCE.parent.parent)]
            compile_command = [args.nvcc, "-std=c++17", f"-arch={arch}", "-use_fast_math", *include, "-cubin"]
            subprocess.run([*compile_command, str(SOURCE), "-o", str(cubin)], check=True)
            done = subprocess.run([args.nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True)
        for rows, body in enumerate(loops(done.stdout), start=1):
            counts = count(body)
            cells = [f"{counts[name] / WORDS:.2f}" for name in names]
            print(f"| {arch} | {rows} | " + " | ".join(cells) + f" | {len(body) / WORDS:.2f} |")


if __name__ == "__main__":
    main()
