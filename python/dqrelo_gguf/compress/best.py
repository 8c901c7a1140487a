"""The method `best`: one weight as sign planes and sign factors, fitted to each other in turn (docs/method.md).

The factors come first, since a delta's low-rank part holds most of it; the planes take what is left; then the factors are
coded again for what the planes leave, and the planes for what the factors leave, as long as the error that is stored falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.lowrank import LowRank
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.paper import norm
from dqrelo_gguf.compress.planes import (
    Planes,
    column_scales,
    subtract_even_planes,
    subtract_planes,
    subtract_shaped_planes,
)
from dqrelo_gguf.compress.sign_factors import SignFactors, add_product, distance, refine, start
from dqrelo_gguf.compress.spectrum import leading, leading_under

# A round that lowers the error by less than this part of it is the last one.
STOP_GAIN = 2e-3
MAX_ROUNDS = 6


@dataclass(frozen=True)
class Mix:
    """How a weight is stored: how many sign planes, and how many planes each singular vector has. One of them at least.

    Args:
        n_planes: of the weight.
        plane_ranks: r_0, r_1, ... of the sign factors; empty for none.
        scale_per_row: each row of a plane has a scale; else all rows share one, and the matrix has none for columns.
    """

    n_planes: int
    plane_ranks: tuple[int, ...]
    scale_per_row: bool = True


@dataclass
class Compressed:
    """One compressed matrix.

    Args:
        planes: None for none.
        factors: None for none.
        error: ||D - D_hat||_F of what is stored.
        weighted_error: the same under the metric; None without one.
    """

    planes: Planes | None
    factors: SignFactors | None
    error: float
    weighted_error: float | None = None


def compress(
    D: torch.Tensor, mix: Mix, blocks: Blocks, *, metric: Metric | None = None, max_rounds: int = MAX_ROUNDS
) -> Compressed:
    """Compresses one delta.

    Args:
        D: (n_out, n_in) float32. It is not changed.
        mix: how.
        blocks: the threads to work with.
        metric: which errors count how much; None for the plain norm. Under one, rows have scales of their own.
        max_rounds: of coding factors and planes in turn, 1 at least.
    """
    fit = _Fit(D, mix, blocks, metric)
    if not mix.plane_ranks:
        R = D.clone()
        columns = column_scales(R, mix.n_planes, blocks) if fit.has_column_scales else None
        planes = fit.subtract_planes(R, columns)
        return Compressed(planes, None, norm(R, blocks), fit.weighted_norm(R))
    factors, columns = fit.begin()
    return fit.in_turn(factors, columns, max_rounds)


@dataclass(frozen=True)
class _Fit:
    """A matrix that is being compressed.

    Args:
        D: (n_out, n_in) float32.
        mix: how.
        blocks: the threads to work with.
        metric: None for the plain norm.
    """

    D: torch.Tensor
    mix: Mix
    blocks: Blocks
    metric: Metric | None

    def begin(self) -> tuple[SignFactors, torch.Tensor | None]:
        """The factors of the truncated SVD, and the column scales of all rounds: those of the planes of what it leaves."""
        D, blocks, plane_ranks = self.D, self.blocks, self.mix.plane_ranks
        if self.metric is not None:
            return start(leading_under(D, plane_ranks[0], self.metric, blocks), plane_ranks, blocks), None
        U, V = leading(D, plane_ranks[0], blocks)
        if not self.has_column_scales:
            return start(LowRank(U, V), plane_ranks, blocks), None
        R = D.clone()
        blocks.run(lambda s: R[s].addmm_(U[s], V, alpha=-1), row_slices(*D.shape))
        columns = column_scales(R, self.mix.n_planes, blocks)
        return start(LowRank(U, V / columns), plane_ranks, blocks), columns

    @property
    def has_column_scales(self) -> bool:
        return self.mix.n_planes > 0 and self.mix.scale_per_row and self.metric is None

    def subtract_planes(self, R: torch.Tensor, columns: torch.Tensor | None) -> Planes:
        """Turns R into what its planes leave, in place."""
        n_planes, blocks = self.mix.n_planes, self.blocks
        if self.metric is not None:
            return subtract_shaped_planes(R, n_planes, self.metric, blocks)
        if columns is None:
            return subtract_even_planes(R, n_planes, blocks)
        return subtract_planes(R, n_planes, columns, blocks)

    def weighted_norm(self, E: torch.Tensor) -> float | None:
        """The metric's norm of an error; None without one."""
        return None if self.metric is None else self.metric.norm(E, self.blocks)

    def in_turn(self, factors: SignFactors, column_scales: torch.Tensor | None, max_rounds: int) -> Compressed:
        """Codes factors and planes in turn, and keeps the round of the least error."""
        D, blocks, metric = self.D, self.blocks, self.metric
        columns = D.new_ones(D.shape[1]) if column_scales is None else column_scales
        best, least = None, math.inf
        has_planes = self.mix.n_planes > 0
        target = D.clone() if has_planes else D  # what the factors shall be: D without the planes
        for _ in range(max_rounds):
            factors = refine(target, factors, columns, blocks, metric)
            if not has_planes:
                found = Compressed(None, factors, *distance(D, factors, columns, blocks, metric))
            else:
                target.copy_(D)
                add_product(target, factors, columns, -1, blocks)
                planes = self.subtract_planes(target, column_scales)
                found = Compressed(planes, factors, norm(target, blocks), self.weighted_norm(target))
                add_product(target, factors, columns, 1, blocks)
            error = found.error if found.weighted_error is None else found.weighted_error
            if error > least * (1 - STOP_GAIN):
                break
            best, least = found, error
        assert best is not None
        return best
