"""Factors of few bits for a residual: R ~ A B, where A's columns and B's rows are coded with sign planes (codes.py).

They begin as the truncated SVD, each vector coded by itself. Then all vectors of equally many planes are solved for
together against what the others leave of R, and coded again, A and B in turn: what the codes of one vector lose, the
others take up. Each step is a least-squares solution of a small system, so a sweep costs little more than R B^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.codes import Coded, encode_rows, rows_of
from dqrelo_gguf.compress.lowrank import LowRank
from dqrelo_gguf.compress.signs import pack_signs


@dataclass
class Vectors:
    """The coded vectors of one side, those with the most planes first.

    Args:
        parts: one for each number of planes, in the order of `rows_of`.
    """

    parts: list[Coded]

    @property
    def values(self) -> torch.Tensor:
        """(rank, n) float32."""
        return torch.cat([part.values for part in self.parts])

    def copy(self) -> Vectors:
        """A list of its own of the same parts, which are never changed."""
        return Vectors(list(self.parts))


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
    sides = [
        Vectors([encode_rows(rows[s].contiguous(), n, blocks) for s, n in rows_of(plane_ranks)])
        for rows in (low_rank.U.T, low_rank.V)
    ]
    return SignFactors(tuple(plane_ranks), *sides)


def refine(R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks) -> None:
    """One sweep: codes A again for the present B, then B for the new A.

    Args:
        R: (n_out, n_in) float32, what A B diag(columns) shall be.
        factors: changed in place.
        columns: (n_in,) float32.
        blocks: the threads to work with.
    """
    b = factors.b.values * columns
    _refine_side(blocks.matmul(R, b.T.contiguous()).T, b @ b.T, factors.a, factors.plane_ranks, blocks)
    a = factors.a.values
    _refine_side(blocks.matmul(R.T, a.T.contiguous()).T / columns, a @ a.T, factors.b, factors.plane_ranks, blocks)


def _refine_side(
    products: torch.Tensor, gram: torch.Tensor, side: Vectors, plane_ranks: Sequence[int], blocks: Blocks
) -> None:
    """Codes the vectors of one side again.

    Args:
        products: (rank, n), the other side's vectors times R.
        gram: (rank, rank), the other side's vectors times each other.
        side: changed in place.
        plane_ranks: r_0, r_1, ...
        blocks: the threads to work with.
    """
    values = side.values
    for i, (s, n_planes) in enumerate(rows_of(plane_ranks)):
        own = gram[s, s]
        # What the vectors outside this part leave for it: products - gram values, its own share added back.
        left = products[s] - gram[s] @ values + own @ values[s]
        # Vectors that are all zero, or equal, make the system singular without the ridge.
        ridge = (1e-6 * own.diagonal().mean() + 1e-30) * torch.eye(own.shape[0])
        wanted = torch.linalg.solve(own + ridge, left)
        side.parts[i] = encode_rows(wanted.contiguous(), n_planes, blocks)
        values[s] = side.parts[i].values


def subtract(R: torch.Tensor, factors: SignFactors, columns: torch.Tensor, blocks: Blocks) -> None:
    """R -= A B diag(columns), in place."""
    A, B = factors.a.values.T.contiguous(), factors.b.values * columns
    blocks.run(lambda s: R[s].addmm_(A[s], B, alpha=-1), row_slices(*R.shape))


def scales_of(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.float32]:
    """The scales (C,) in the order of the codes: plane after plane."""
    return torch.cat(
        [torch.cat([p.scales[:, q] for p in _with_plane(side, q)]) for q in range(len(plane_ranks))]
    ).numpy()


def bits_of(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The signs (C, n) in the order of the codes, True for +1."""
    planes = [torch.cat([(p.codes >> q) & 1 for p in _with_plane(side, q)]) for q in range(len(plane_ranks))]
    return torch.cat(planes).numpy().astype(bool)


def _with_plane(side: Vectors, q: int) -> list[Coded]:
    """The parts that have plane q; they come first."""
    return [part for part in side.parts if part.scales.shape[1] > q]


def row_bits(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Packed signs with a row a code: (C, n // 8)."""
    return pack_signs(bits_of(side, plane_ranks).astype(np.int8))


def column_bits(side: Vectors, plane_ranks: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Packed signs with a column a code: (n, C // 8)."""
    return pack_signs(np.ascontiguousarray(bits_of(side, plane_ranks).T).astype(np.int8))
