"""The method `best`: one weight as sign planes and sign factors, fitted to each other in turn (docs/method.md).

The factors come first, since a delta's low-rank part holds most of it; the planes take what is left; then the factors are
coded again for what the planes leave, and the planes for what the factors leave, as long as the error that is stored falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.lowrank import LowRank
from dqrelo_gguf.compress.paper import norm
from dqrelo_gguf.compress.planes import Planes, column_scales, subtract_planes
from dqrelo_gguf.compress.sign_factors import SignFactors, add_product, distance, refine, start
from dqrelo_gguf.compress.spectrum import leading

# A round that lowers the error by less than this part of it is the last one.
STOP_GAIN = 2e-3
MAX_ROUNDS = 6


@dataclass(frozen=True)
class Mix:
    """How a weight is stored: how many sign planes, and how many planes each singular vector has. One of them at least.

    Args:
        n_planes: of the weight.
        plane_ranks: r_0, r_1, ... of the sign factors; empty for none.
    """

    n_planes: int
    plane_ranks: tuple[int, ...]


@dataclass
class Compressed:
    """One compressed matrix.

    Args:
        planes: None for none.
        factors: None for none.
        error: ||D - D_hat||_F of what is stored.
    """

    planes: Planes | None
    factors: SignFactors | None
    error: float


def compress(D: torch.Tensor, mix: Mix, blocks: Blocks, *, max_rounds: int = MAX_ROUNDS) -> Compressed:
    """Compresses one delta.

    Args:
        D: (n_out, n_in) float32. It is not changed.
        mix: how.
        blocks: the threads to work with.
        max_rounds: of coding factors and planes in turn, 1 at least.
    """
    if not mix.plane_ranks:
        R = D.clone()
        planes = subtract_planes(R, mix.n_planes, column_scales(R, mix.n_planes, blocks), blocks)
        return Compressed(planes, None, norm(R, blocks))
    factors, columns = _begin(D, mix, blocks)
    return _in_turn(D, factors, mix.n_planes, columns, blocks, max_rounds=max_rounds)


def _begin(D: torch.Tensor, mix: Mix, blocks: Blocks) -> tuple[SignFactors, torch.Tensor]:
    """The factors of the truncated SVD, and the column scales of all rounds: those of the planes of what it leaves."""
    U, V = leading(D, mix.plane_ranks[0], blocks)
    columns = torch.ones(D.shape[1])
    if mix.n_planes > 0:
        R = D.clone()
        blocks.run(lambda s: R[s].addmm_(U[s], V, alpha=-1), row_slices(*D.shape))
        columns = column_scales(R, mix.n_planes, blocks)
    return start(LowRank(U, V / columns), mix.plane_ranks, blocks), columns


def _in_turn(
    D: torch.Tensor, factors: SignFactors, n_planes: int, columns: torch.Tensor, blocks: Blocks, *, max_rounds: int
) -> Compressed:
    """Codes factors and planes in turn, and keeps the round of the least error."""
    best = None
    target = D if n_planes == 0 else D.clone()  # what the factors shall be: D without the planes
    for _ in range(max_rounds):
        factors = refine(target, factors, columns, blocks)
        if n_planes == 0:
            found = Compressed(None, factors, distance(D, factors, columns, blocks))
        else:
            target.copy_(D)
            add_product(target, factors, columns, -1, blocks)
            planes = subtract_planes(target, n_planes, columns, blocks)
            found = Compressed(planes, factors, norm(target, blocks))
            add_product(target, factors, columns, 1, blocks)
        if best is not None and found.error > best.error * (1 - STOP_GAIN):
            break
        best = found
    assert best is not None
    return best
