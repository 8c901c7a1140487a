"""What a decode step of Llama-3.1-8B with deltas must cost on a GPU: bytes, instructions and launches, and the time that no kernel can beat.

  gpu_floor.py

prints the tables of docs/gpu.md. Nothing is measured here: the times are bytes over the memory's specified speed, or instructions over the specified
number that the processors issue, whichever is larger.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

N_LAYER = 32
N_EMBD, N_FF, N_KV, N_VOCAB = 4096, 14336, 1024, 128256
# U and V get this share of the ratio 1/8 (arXiv:2604.16940, Eq. 12).
GAMMA = 1 / 16
GB = 1e9
DELTAS = (1, 2, 4, 8, 16)
PAPER_MS = {
    2: 45,
    4: 52,
    8: 67,
    16: 91,
}  # The latencies are those of decoding on one 80 GB GPU that the paper does not name (arXiv:2604.16940, Table 4).
OPS_PER_LAYER = 9  # A layer has 7 matrices and 2 norms.
OPS_ONCE = 3  # These are the token embeddings, the last norm and the head.

# Integer instructions for 32 signs, docs/gpu.md: masks and shifts once, then the products of each row of the same delta.
UNPACK_WORD, DOT_WORD = 11, 16
# F16 factors: one conversion and one multiply-add a value; each further row of the delta a multiply-add.
CONVERT, MULTIPLY_ADD = 1, 1


@dataclass(frozen=True)
class Gpu:
    """Public figures: NVIDIA's specifications, boost clock; a multiprocessor issues 64 integer (dp4a included) and 128 F32 lanes a cycle."""

    name: str
    memory_gb: int
    gb_per_s: float
    n_sm: int
    ghz: float
    int8_tops: float  # tensor cores, dense
    f16_tflops: float  # tensor cores, dense, F32 sums

    def int_per_s(self) -> float:
        return 64 * self.n_sm * self.ghz * 1e9

    def f32_per_s(self) -> float:
        return 128 * self.n_sm * self.ghz * 1e9


GPUS = (
    Gpu("RTX 3060", 12, 360, 28, 1.777, 102, 25.5),
    Gpu("RTX 4090", 24, 1008, 128, 2.52, 661, 165),
    Gpu("H100 SXM", 80, 3350, 132, 1.83, 1979, 989),
)


@dataclass(frozen=True)
class Weight:
    """`n` matrices of this shape in the model."""

    name: str
    n_in: int
    n_out: int
    n: int

    def weights(self) -> int:
        return self.n_in * self.n_out

    def rank(self) -> int:
        return int(GAMMA * self.n_in * self.n_out / (self.n_in + self.n_out))

    def factor_values(self) -> int:
        return self.rank() * (self.n_in + self.n_out)

    def delta_bytes(self) -> float:
        return self.weights() / 8 + 2 * self.factor_values() + 4

    def integer_ops(self, n_rows: int) -> float:
        """Instructions of single lanes for the signs, n_rows rows of one delta."""
        return self.weights() / 32 * (UNPACK_WORD + DOT_WORD * n_rows)

    def f32_ops(self, n_rows: int) -> float:
        return self.factor_values() * (CONVERT + MULTIPLY_ADD * n_rows)

    def floor_us(self, gpu: Gpu, n_rows: int) -> tuple[float, float]:
        """Microseconds of memory and of arithmetic; integer and F32 units work side by side."""
        memory = self.delta_bytes() / (gpu.gb_per_s * GB)
        arithmetic = max(self.integer_ops(n_rows) / gpu.int_per_s(), self.f32_ops(n_rows) / gpu.f32_per_s())
        return 1e6 * memory, 1e6 * arithmetic


WEIGHTS = (
    Weight("q, o", N_EMBD, N_EMBD, 2 * N_LAYER),
    Weight("k, v", N_EMBD, N_KV, 2 * N_LAYER),
    Weight("gate, up", N_EMBD, N_FF, 2 * N_LAYER),
    Weight("down", N_FF, N_EMBD, N_LAYER),
    Weight("head", N_EMBD, N_VOCAB, 1),
)
BASES = (("F16", 2.0), ("Q4_K_M", 0.6))  # bytes a weight


def delta_gb() -> float:
    return sum(w.n * w.delta_bytes() for w in WEIGHTS) / GB


def base_gb(bytes_per_weight: float) -> float:
    return sum(w.n * w.weights() for w in WEIGHTS) * bytes_per_weight / GB


def step_ms(gpu: Gpu, bytes_per_weight: float, n_deltas: int) -> float:
    """One token for each of n_deltas streams with deltas of their own: the base is read once, every delta once."""
    base = base_gb(bytes_per_weight) / gpu.gb_per_s
    delta = sum(w.n * max(w.floor_us(gpu, 1)) for w in WEIGHTS) / 1e6
    return 1000 * (base + n_deltas * delta)


def prompt_ms(gpu: Gpu, n_rows: int) -> tuple[float, float, float, float]:
    """Milliseconds of arithmetic for n_rows of a prompt: the base's F16 product, the signs with two int8 planes, F16 factors with rows as two F16
    values an element (all tensor cores), and factors of other types (F32).
    """
    base = sum(2 * w.n * w.weights() for w in WEIGHTS) * n_rows / (gpu.f16_tflops * 1e12)
    signs = sum(2 * 2 * w.n * w.weights() for w in WEIGHTS) * n_rows / (gpu.int8_tops * 1e12)
    products = sum(w.n * w.factor_values() for w in WEIGHTS) * n_rows
    return (
        1000 * base,
        1000 * signs,
        1000 * 2 * 2 * products / (gpu.f16_tflops * 1e12),
        1000 * products / gpu.f32_per_s(),
    )


def print_table(header: list[str], rows: list[list[str]]) -> None:
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")
    print()


def print_ops() -> None:
    """One op, one row of one delta."""
    rows = []
    for w in WEIGHTS:
        times = [" / ".join(f"{us:.1f}" for us in w.floor_us(gpu, 1)) for gpu in GPUS]
        shape = f"{w.name}: {w.n_in} x {w.n_out}"
        sizes = [f"{w.weights() / 8 / 1e6:.2f}", f"{2 * w.factor_values() / 1e6:.2f}"]
        counts = [f"{w.integer_ops(1) / 1e6:.1f}", f"{w.f32_ops(1) / 1e6:.1f}"]
        rows.append([shape, str(w.rank()), *sizes, *counts, *times])
    header = ["n_in x n_out", "rank", "signs MB", "U, V MB", "integer M", "F32 M"]
    print_table([*header, *(f"{gpu.name} us" for gpu in GPUS)], rows)


def print_rows() -> None:
    """From how many rows of one delta on arithmetic is the bound of the small-batch kernel: the q matrix."""
    q = WEIGHTS[0]
    rows = []
    for gpu in GPUS:
        times = [q.floor_us(gpu, n) for n in (1, 2, 4, 8, 16)]
        rows.append([gpu.name, *(f"{memory:.1f} / {arithmetic:.1f}" for memory, arithmetic in times)])
    print_table(["us", "1 row", "2", "4", "8", "16"], rows)


def print_steps() -> None:
    """The floor of a step beside the paper's latency."""
    rows = []
    for gpu in GPUS:
        for base, bytes_per_weight in BASES:
            cells = []
            for n in DELTAS:
                fits = base_gb(bytes_per_weight) + n * delta_gb() < gpu.memory_gb
                cells.append(f"{step_ms(gpu, bytes_per_weight, n):.1f}" + ("" if fits else " *"))
            rows.append([f"{gpu.name}, base {base}", f"{step_ms(gpu, bytes_per_weight, 0):.1f}", *cells])
    rows.append(["paper, Table 4", "-", *(str(PAPER_MS.get(n, "-")) for n in DELTAS)])
    print_table(["ms a step", "no delta", *(f"{n} deltas" if n > 1 else "1 delta" for n in DELTAS)], rows)


def print_prompts() -> None:
    rows = [[gpu.name, *(f"{ms:.1f}" for ms in prompt_ms(gpu, 512))] for gpu in GPUS]
    header = ["512 rows of one delta, ms", "base, F16", "signs", "U and V in F16", "U and V of other types"]
    print_table(header, rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"base {base_gb(2.0):.2f} GB in F16, {base_gb(0.6):.2f} GB in Q4_K_M, one delta {delta_gb():.2f} GB")
    n_ops = N_LAYER * OPS_PER_LAYER + OPS_ONCE
    n_matrices = sum(w.n for w in WEIGHTS)
    print(f"launches of the op: {n_ops} a step, {n_ops + 3 * n_matrices} a prompt of more than 16 rows\n")
    print_ops()
    print_rows()
    print_steps()
    print_prompts()


if __name__ == "__main__":
    main()
