"""Factors of few bits for a residual: R ~ A B, where A's columns and B's rows are coded with sign planes (codes.py).

They begin as the truncated SVD, each vector coded by itself. Then all vectors of equally many planes are solved for
together against what the others leave of R, and coded again, A and B in turn: what the codes of one vector lose, the
others take up. Each step is a least-squares solution of a small system, so a sweep costs little more than R B^T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.codes import Coded, encode_rows, rows_of
from dqrelo_gguf.compress.feedback import shape_rows
from dqrelo_gguf.compress.lowrank import LowRank
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.signs import pack_signs


@dataclass
class Vectors:
    """The coded vectors of one side, those with the most planes first.

    Args:
        values: (rank, n) float32.
        parts: one for each number of planes, in the order of `rows_of`; their values are views of `values`.
    """

    values: torch.Tensor
    parts: list[Coded]


@dataclass
class SignFactors:
    """A B of one matrix.

    Args:
        plane_ranks: r_0, r_1, ...
        a: the columns of A, (rank, n_out) as rows.
        b: the rows of B, (rank, n_in).
    """

    plane_ranks: tuple[int, ...]
    a: Vectors
    b: Vectors


def start(low_rank: LowRank, plane_ranks: Sequence[int], blocks: Blocks) -> SignFactors:
    """The truncated SVD, each vector coded by itself.

    Args:
        low_rank: of rank r_0 at least.
        plane_ranks: r_0, r_1, ...
        blocks: the threads to work with.
    """
    sides = []
    for rows in (low_rank.U.T, low_rank.V):
        values = rows[: plane_ranks[0]].contiguous()
        parts = [encode_rows(values[s], n_planes, values[s], blocks) for s, n_planes in rows_of(plane_ranks)]
        sides.append(Vectors(values, parts))
    return SignFactors(tuple(plane_ranks), *sides)


def refine(
    R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks, metric: Metric | None = None
) -> SignFactors:
    """One sweep: codes A again for the present B, then B for the new A.

    Args:
        R: (n_out, n_in) float32, what A B diag(columns) shall be.
        factors: where to begin; they are not changed.
        columns: (n_in,) float32; ones with a metric.
        blocks: the threads to work with.
        metric: of R's errors; None for the plain norm.
    """
    if metric is None:
        return _refine_b(R, _refine_a(R, factors, columns, blocks), columns, blocks)
    factors = _refine_a(R, factors, columns, blocks, metric)
    # A makes up for what B's new codes lose.
    return _refine_a(R, _shape_b(R, factors, metric, blocks), columns, blocks, metric)


def _refine_a(
    R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks, metric: Metric | None = None
) -> SignFactors:
    b = factors.b.values * columns
    weighed = b if metric is None else blocks.matmul(b, metric.H)
    products = blocks.matmul(R, weighed.T).T
    a = _refined(products, weighed @ b.T, factors.a, factors.plane_ranks, blocks)
    return SignFactors(factors.plane_ranks, a, factors.b)


def _refine_b(R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks) -> SignFactors:
    a = factors.a.values
    products = blocks.matmul(R.T, a.T).div_(columns[:, None]).T
    b = _refined(products, a @ a.T, factors.b, factors.plane_ranks, blocks)
    return SignFactors(factors.plane_ranks, factors.a, b)


def _shape_b(R: torch.Tensor, factors: SignFactors, metric: Metric, blocks: Blocks) -> SignFactors:
    """B is solved for all vectors together, whatever the metric, and coded with error feedback under it."""
    a = factors.a.values
    wanted = _solver(a @ a.T) @ blocks.matmul(R.T, a.T).T
    values = torch.empty_like(wanted)
    parts = shape_rows(wanted, list(rows_of(factors.plane_ranks)), metric, values, blocks)
    return SignFactors(factors.plane_ranks, factors.a, Vectors(values, parts))


def _solver(gram: torch.Tensor) -> torch.Tensor:
    """The inverse of a Gram matrix."""
    # Vectors that are all zero, or equal, make the system singular without the ridge.
    ridge = (1e-6 * gram.diagonal().mean() + 1e-30) * torch.eye(gram.shape[0], device=gram.device)
    inverse: torch.Tensor = torch.linalg.inv(gram + ridge)
    return inverse


def _refined(
    products: torch.Tensor, gram: torch.Tensor, side: Vectors, plane_ranks: Sequence[int], blocks: Blocks
) -> Vectors:
    """The vectors of one side, coded again.

    Args:
        products: (rank, n), the other side's vectors times R. Destroyed.
        gram: (rank, rank), the other side's vectors times each other.
        side: as they are now.
        plane_ranks: r_0, r_1, ...
        blocks: the threads to work with.
    """
    values, parts = side.values.clone(), []
    for s, n_planes in rows_of(plane_ranks):
        own = gram[s, s]
        solver = _solver(own)
        wanted = products[s]

        def solve(c: slice, s: slice = s, own: torch.Tensor = own, solver: torch.Tensor = solver) -> None:
            # What the vectors outside this part leave for it: products - gram values, its own share added back.
            left = torch.addmm(products[s, c], gram[s], values[:, c], alpha=-1).addmm_(own, values[s, c])
            products[s, c] = solver @ left

        blocks.run(solve, row_slices(products.shape[1], products.shape[0]))
        parts.append(encode_rows(wanted, n_planes, values[s], blocks))
    return Vectors(values, parts)


def add_product(R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, sign: int, blocks: Blocks) -> None:
    """R += sign A B diag(columns), in place."""
    A, B = factors.a.values.T, factors.b.values * columns
    blocks.run(lambda s: R[s].addmm_(A[s], B, alpha=sign), row_slices(*R.shape))


def distance(
    R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks, metric: Metric | None = None
) -> tuple[float, float | None]:
    """||R - A B diag(columns)||_F and the metric's norm of the same, None without one; without a second matrix of R's size."""
    A, B = factors.a.values.T, factors.b.values * columns

    def part(s: slice) -> torch.Tensor:
        error = torch.addmm(R[s], A[s], B, alpha=-1)
        norms = [error] if metric is None else [error, error @ metric.root]
        return torch.stack([e.square().sum(dtype=torch.float64) for e in norms])

    plain, *weighted = (math.sqrt(float(n)) for n in blocks.sum_rows(part, *R.shape))
    return plain, weighted[0] if weighted else None


def scales_of(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.float32]:
    """The scales (C,) in the order of the codes: plane after plane."""
    planes = [torch.cat([p.scales[:, q] for p in _with_plane(side, q)]) for q in range(len(plane_ranks))]
    scales: npt.NDArray[np.float32] = torch.cat(planes).cpu().numpy()
    return scales


def bits_of(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The signs (C, n) in the order of the codes, 1 for +1 and 0 for -1."""
    planes = [torch.cat([(p.codes >> q) & 1 for p in _with_plane(side, q)]) for q in range(len(plane_ranks))]
    bits: npt.NDArray[np.uint8] = torch.cat(planes).cpu().numpy()
    return bits


def _with_plane(side: Vectors, q: int) -> list[Coded]:
    """The parts that have plane q; they come first."""
    return [part for part in side.parts if part.scales.shape[1] > q]


def row_bits(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Packed signs with a row a code: (C, n // 8)."""
    return pack_signs(bits_of(side, plane_ranks))


def column_bits(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Packed signs with a column a code: (n, C // 8)."""
    return pack_signs(bits_of(side, plane_ranks).T)
