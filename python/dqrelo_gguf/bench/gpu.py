"""What `dqrelo-bench --gpu-check` does on a machine with a GPU: is the operator right there, are the logits, what does a step cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from dqrelo_gguf.bench.plan import DeltaFile, Plan, Workload
from dqrelo_gguf.bench.run import Row, run_plan
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.native import core
from dqrelo_gguf.runtime.programs import program

N_TOKENS = 24  # tokens of each sequence that is compared
# llama.cpp's own kernels for GPUs quantise activations to 8 bits, or sum in 16: more than that is an error of a kernel.
MOST_NMSE = 1e-3

Logits = Sequence[NDArray[np.float32]]


class GpuError(DqreloError):
    """A GPU is missing, or computes something else than the CPU."""


@dataclass(frozen=True)
class Step:
    """A step of `n_streams` streams, a token each.

    Args:
        n_streams: as many deltas as streams.
        base_ms: milliseconds of the base alone; the median.
        delta_ms: with the deltas.
        base_bytes, delta_bytes: what the step reads of both.
    """

    n_streams: int
    base_ms: float
    delta_ms: float
    base_bytes: int
    delta_bytes: int


def check_operator() -> None:
    """Runs the operator's test cases on every GPU; their results go to stdout.

    Raises:
        GpuError: a case went wrong, or there is no GPU.
        InputError: the program is not there.
    """
    done = subprocess.run([program("dqrelo-op-check")], stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr if done.returncode == 0 else "")
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["the operator is wrong on a GPU; its failed cases are above"]
        raise GpuError(reason[0].removeprefix("dqrelo-op-check: "))


def check_logits(plan: Plan, out: TextIO) -> None:
    """Compares the logits of one mixed batch, the base and every delta in it, on the GPU and on the CPU.

    Args:
        plan: the base, its deltas, and settings, of which the first are used.
        out: where the table goes.

    Raises:
        GpuError: they differ by more than MOST_NMSE, or the GPU would have no part in them.
        InputError: a file cannot be used.
    """
    _need_gpu(plan)
    gpu, cpu = (_logits(plan, n) for n in (plan.settings[0].n_gpu_layers, 0))
    names = ["-", *(file.name for file in plan.deltas)]
    errors = [nmse(a, b) for a, b in zip(gpu, cpu, strict=True)]
    out.write("\n| delta | NMSE of the logits, GPU to CPU |\n| --- | ---: |\n")
    out.writelines(f"| {name} | {error:.1e} |\n" for name, error in zip(names, errors, strict=True))
    worst = max(range(len(errors)), key=errors.__getitem__)
    if not errors[worst] <= MOST_NMSE:
        raise GpuError(
            f"{plan.base}: with delta '{names[worst]}' the GPU's logits differ from the CPU's by an NMSE of "
            f"{errors[worst]:.1e}, expected at most {MOST_NMSE:.0e}. Run with -ngl 0, and report it"
        )


def nmse(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Mean squared error over the mean square of what is expected."""
    wanted = expected.astype(np.float64)
    return float(np.sum((found - wanted) ** 2) / np.sum(wanted**2))


def time_steps(plan: Plan, n_streams: Iterable[int]) -> Iterator[Step]:
    """What steps of more and more streams cost, each stream with a delta of its own: Table 4 of the paper.

    Args:
        plan: the base, at least one delta, and settings; where there are fewer deltas than streams they are loaded
            several times, each copy with memory of its own.
        n_streams: in the order in which they are measured.

    Raises:
        InputError: a file cannot be used, or the memory does not hold the copies.
    """
    n_gen = max(test.n_gen for test in plan.tests)
    for n in n_streams:
        one = replace(plan, deltas=copies(plan.deltas, n), blends=(), tests=(Workload(0, n_gen, n),))
        base, *others = run_plan(one)
        yield Step(n, _ms(base), _ms(others[0]), base.base_bytes, others[0].delta_bytes)


def print_steps(steps: Iterable[Step], out: TextIO) -> None:
    """Prints steps as they come, in Markdown."""
    out.write("\n| deltas, a stream each | base alone, ms a step | with deltas, ms | ratio | bytes, ratio |\n")
    out.write("| ---: | ---: | ---: | ---: | ---: |\n")
    for step in steps:
        of_bytes = (step.base_bytes + step.delta_bytes) / step.base_bytes
        times = f"{step.base_ms:.2f} | {step.delta_ms:.2f} | {step.delta_ms / step.base_ms:.2f}"
        out.write(f"| {step.n_streams} | {times} | {of_bytes:.2f} |\n")
        out.flush()


def copies(deltas: Sequence[DeltaFile], n: int) -> tuple[DeltaFile, ...]:
    """The first n deltas; where there are fewer, the same files again under other names."""
    rounds = ((i // len(deltas) + 1, deltas[i % len(deltas)]) for i in range(n))
    return tuple(file if k == 1 else DeltaFile(f"{file.name} ({k})", file.path) for k, file in rounds)


def _need_gpu(plan: Plan) -> None:
    if not core.machine()["gpu_info"]:
        raise GpuError("the Python module finds no GPU, so there is nothing to compare")
    if plan.settings[0].n_gpu_layers == 0:
        raise GpuError("-ngl 0 keeps every layer off the GPU, so there is nothing to compare; leave it out")


def _ms(row: Row) -> float:
    return median(row.samples_ns) / row.test.n_gen / 1e6


def _logits(plan: Plan, n_gpu_layers: int) -> Logits:
    settings = plan.settings[0]
    params = core.SessionParams()
    params.n_seq_max = 1 + len(plan.deltas)
    params.n_ctx = params.n_seq_max * N_TOKENS
    params.n_gpu_layers = n_gpu_layers
    params.flash_attn = settings.flash_attn
    session = core.Session(plan.base, params)
    try:
        deltas = [session.load_delta(file.path, plan.allow_other_base, False) for file in plan.deltas]
        tokens = np.random.default_rng(1).integers(0, session.n_vocab, N_TOKENS, dtype=np.int32)
        rows: list[list[tuple[core.Delta, float]]] = [[], *([(delta, 1.0)] for delta in deltas)]
        n = len(rows)
        return session.logits([tokens] * n, rows, [0] * n)
    finally:
        session.close()
