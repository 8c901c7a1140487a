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
from dqrelo_gguf.compress.sign_factors import SignFactors, refine, start, subtract
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


def compress(D: torch.Tensor, mix: Mix, blocks: Blocks) -> Compressed:
    """Compresses one delta.

    Args:
        D: (n_out, n_in) float32. It is not changed.
        mix: how.
        blocks: the threads to work with.
    """
    if not mix.plane_ranks:
        R = D.clone()
        planes = subtract_planes(R, mix.n_planes, column_scales(R, mix.n_planes, blocks), blocks)
        return Compressed(planes, None, norm(R, blocks))
    low_rank = leading(D, mix.plane_ranks[0], blocks)
    columns = _columns(D, low_rank, mix.n_planes, blocks)
    factors = start(LowRank(low_rank.U, low_rank.V / columns), mix.plane_ranks, blocks)
    target, best = D, None
    for _ in range(MAX_ROUNDS):
        refine(target, factors, columns, blocks)
        planes, target, error = _take_planes(D, factors, mix.n_planes, columns, blocks)
        if best is not None and error > best.error * (1 - STOP_GAIN):
            break
        best = Compressed(planes, factors, error)
        factors = SignFactors(factors.plane_ranks, factors.a.copy(), factors.b.copy())
    assert best is not None
    return best


def _columns(D: torch.Tensor, low_rank: LowRank, n_planes: int, blocks: Blocks) -> torch.Tensor:
    """The column scales of all rounds: those of the planes of what the low-rank part leaves."""
    if n_planes == 0:
        return torch.ones(D.shape[1])
    R = D.clone()
    blocks.run(lambda s: R[s].addmm_(low_rank.U[s], low_rank.V, alpha=-1), row_slices(*D.shape))
    return column_scales(R, n_planes, blocks)


def _take_planes(
    D: torch.Tensor, factors: SignFactors, n_planes: int, columns: torch.Tensor, blocks: Blocks
) -> tuple[Planes | None, torch.Tensor, float]:
    """The planes beside the factors, what the factors should be beside those planes, and the error."""
    R = D.clone()
    subtract(R, factors, columns, blocks)
    if n_planes == 0:
        return None, D, norm(R, blocks)
    rest = R.clone()
    planes = subtract_planes(R, n_planes, columns, blocks)
    # D - planes = (R - planes) + (D - R); `rest` is R as it was.
    error = norm(R, blocks)
    return planes, R.sub_(rest).add_(D), error
