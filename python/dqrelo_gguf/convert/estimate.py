"""What a conversion will take: memory from the largest weight, time from a short measurement of this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.lowrank import subspace_width
from dqrelo_gguf.convert.plan import Planned

# Passes that the subspace iteration needs on real residuals, each with two products (see lowrank.py).
_PASSES = 6
# Weights read, checked, subtracted and packed, in elements a second and thread; measured on 2 cores of an AMD EPYC.
_ELEMENTS_PER_SECOND = 25e6
# Arrays of a weight's size that live at once while a bf16 weight is permuted: its mapped file pages (a half), its
# float32 form, and the permuted copy.
_COPIES = 2.5
# Sweeps that the sign factors take, each with four products of D with them, and then planes.
_ROUNDS = 5
# Numbers coded a second and thread, in sweeps and planes; measured on an AMD EPYC (Zen 3).
_CODED_PER_SECOND = 130e6


@dataclass(frozen=True)
class Estimate:
    """Beyond what the interpreter and its libraries take."""

    memory_bytes: int
    seconds: float


def estimate(planned: list[Planned], blocks: Blocks, n_threads: int) -> Estimate:
    """Memory and time for the weights of a plan.

    Args:
        planned: the weights.
        blocks: the threads that a measurement takes.
        n_threads: how many threads will compute, with those of a cluster's workers; the memory is that of one of them.
    """
    memory = max(_memory(p) for p in planned)
    work = sum(_flops(p) for p in planned)
    n_elements = sum(prod(p.pair.ne) for p in planned)
    seconds = work / (_flops_per_second(blocks) * n_threads / blocks.n_threads)
    seconds += n_elements / (_ELEMENTS_PER_SECOND * n_threads)
    seconds += sum(_n_coded(p) for p in planned) / (_CODED_PER_SECOND * n_threads)
    return Estimate(memory, seconds)


def _memory(planned: Planned) -> int:
    """Bytes of a weight's arrays: of the delta, and of the factors of one matrix, which live as float32 numbers three times."""
    n_in, n_out = (*planned.spec.ne, 1)[:2]
    of_factors = 3 * (n_in + n_out) * max(planned.spec.plane_ranks, default=0)
    of_planes = n_in * n_out if planned.spec.cscale else 0
    return int(4 * (_COPIES * prod(planned.pair.ne) + of_factors + of_planes))


def _flops(planned: Planned) -> float:
    n_elements = prod(planned.spec.ne)
    if planned.factors is not None:
        return 0.0
    if planned.spec.plane_ranks:
        return 2.0 * n_elements * planned.spec.plane_ranks[0] * 4 * _ROUNDS
    if planned.spec.rank == 0:
        return 0.0
    width = subspace_width(planned.spec.rank, min(planned.spec.ne[:2]))
    return 2.0 * n_elements * width * (2 * _PASSES + 1)


def _n_coded(planned: Planned) -> float:
    """Numbers that are coded: those of the factors in every sweep, and those of the matrix where it has column scales."""
    spec = planned.spec
    if not spec.plane_ranks and not spec.cscale:
        return 0.0
    n_in, n_out, *experts = spec.ne
    of_factors = prod(experts) * (n_in + n_out) * max(spec.plane_ranks, default=0)
    return _ROUNDS * (of_factors + (prod(spec.ne) if spec.n_planes else 0))


def _flops_per_second(blocks: Blocks) -> float:
    """The speed of a product with the shape that dominates; takes a few hundredths of a second."""
    A, X = torch.ones(2048, 2048, device=blocks.device), torch.ones(2048, 96, device=blocks.device)
    float(blocks.matmul(A, X)[0, 0])
    begun = time.perf_counter()
    float(blocks.matmul(A, X)[0, 0])  # Reading a number waits for a GPU.
    return 2.0 * A.numel() * X.shape[1] / (time.perf_counter() - begun)
