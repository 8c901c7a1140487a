"""Vectors of few bits: each row of a matrix as a sum of sign planes that have scales of their own.

Row k of a matrix is coded with `b_k` planes of signs, `x_k ~ sum over q of scale_qk s_qk`, b_0 >= b_1 >= ... The codes are
numbered plane after plane (docs/format.md, section 1): plane q covers the leading r_q rows.

    plane 0   rows 0 .............. r_0 - 1        codes 0 ......... r_0 - 1
    plane 1   rows 0 ..... r_1 - 1                 codes r_0 ....... r_0 + r_1 - 1
    ...

The 2^b sums of a row's scales are the values that its elements can have. They are chosen as by Lloyd and Max: elements take
the nearest value, then the scales are the ones of least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.signs import unpack_signs

F32 = npt.NDArray[np.float32]

# The step of the best uniform quantiser of 2^b levels for a Gaussian variable of variance 1 (Max, 1960, Table II), b from 1.
_GAUSSIAN_STEP = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
MAX_PLANES = len(_GAUSSIAN_STEP)
# Middles that are all compared with each element: those of three planes.
_MOST_COMPARED = 7


@dataclass
class Coded:
    """Rows of b planes.

    Args:
        values: (k, n) float32, what the codes stand for.
        scales: (k, b) float32, each exact in BF16.
        codes: (k, n) uint8; bit q of a code is the sign of plane q, 1 for +1.
    """

    values: torch.Tensor
    scales: torch.Tensor
    codes: torch.Tensor


def encode_rows(X: torch.Tensor, n_planes: int, values: torch.Tensor, blocks: Blocks) -> Coded:
    """Codes each row of a matrix with the same number of planes, each row by itself, on all threads.

    Args:
        X: (k, n) float32.
        n_planes: b, 1 to MAX_PLANES.
        values: (k, n) float32, where the result's values are put; may be X.
        blocks: the threads to work with.
    """
    k, n = X.shape
    out = Coded(values, X.new_empty((k, n_planes)), X.new_empty((k, n), dtype=torch.uint8))

    def step(s: slice) -> None:
        coded = code_rows(X[s].contiguous(), n_planes)
        out.values[s], out.scales[s], out.codes[s] = coded.values, coded.scales, coded.codes

    blocks.run(step, row_slices(k, n))
    return out


def code_rows(X: torch.Tensor, n_planes: int) -> Coded:
    """Codes each row of a matrix with the same number of planes.

    Args:
        X: (k, n) float32, contiguous.
        n_planes: b, 1 to MAX_PLANES.
    """
    _, signs, place = _nearest(X, _gaussian_scales(X, n_planes))
    # The values are those of the scales as they are stored.
    scales = _least_squares(X, signs, place, n_planes).bfloat16().float()
    levels, signs, place = _nearest(X, scales)
    return Coded(torch.gather(levels, 1, place), scales, torch.gather(signs, 1, place).to(torch.uint8))


def _gaussian_scales(X: torch.Tensor, n_planes: int) -> torch.Tensor:
    rms = X.square().mean(dim=1, keepdim=True).sqrt()
    return rms * (_GAUSSIAN_STEP[n_planes - 1] / 2 * 2.0 ** torch.arange(n_planes))


def _sign_table(n_planes: int) -> torch.Tensor:
    """(2^b, b): the signs of every code."""
    bits = torch.arange(2**n_planes)[:, None] >> torch.arange(n_planes)
    return (2 * (bits & 1) - 1).float()


def _nearest(X: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row's values in ascending order (k, 2^b), their codes (k, 2^b), and the place of each element's nearest (k, n)."""
    levels, middles, codes = levels_of(scales)
    return levels, codes, places(middles, X)


def levels_of(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the numbers of rows with these scales (k, b) can be.

    Returns:
        The values in ascending order (k, 2^b), the middles between them (k, 2^b - 1), and the values' codes (k, 2^b).
    """
    levels, codes = (scales @ _sign_table(scales.shape[1]).T).sort(dim=1)
    return levels, ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous(), codes


def places(middles: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """How many of its row's 2^b - 1 ascending middles (k, 2^b - 1) each element of X (k, n) exceeds; int64.

    What torch.searchsorted finds, several times faster: few middles are all compared, more are halved b times.
    """
    n_middles = middles.shape[1]
    if n_middles <= _MOST_COMPARED:
        count = (middles[:, :1] < X).to(torch.uint8)
        for i in range(1, n_middles):
            count += middles[:, i : i + 1] < X
        return count.long()
    found = torch.zeros(X.shape, dtype=torch.int64)
    half = (n_middles + 1) // 2
    while half > 0:
        found += (torch.gather(middles, 1, found + (half - 1)) < X) * half
        half //= 2
    return found


def _least_squares(X: torch.Tensor, codes: torch.Tensor, place: torch.Tensor, n_planes: int) -> torch.Tensor:
    """The scales (k, b) that fit each row best with the signs that its elements have now."""
    k, n = X.shape
    n_levels = codes.shape[1]
    flat = (place + torch.arange(k)[:, None] * n_levels).view(-1)
    # A row enters the equations by how many elements have a code, and by their sum.
    count = torch.bincount(flat, minlength=k * n_levels).view(k, n_levels).float()
    total = torch.bincount(flat, weights=X.reshape(-1), minlength=k * n_levels).view(k, n_levels).float()
    signs = _sign_table(n_planes)[codes]  # (k, 2^b, b)
    left = torch.einsum("kl,klp,klq->kpq", count, signs, signs)
    right = torch.einsum("kl,klp->kp", total, signs)
    # Two planes with equal signs share their scale: the ridge makes the equations solvable.
    scales: torch.Tensor = torch.linalg.solve(left + 1e-6 * n * torch.eye(n_planes), right)
    return scales


def planes_of(plane_ranks: Sequence[int]) -> Iterator[slice]:
    """The codes of each plane.

    >>> list(planes_of([3, 1]))
    [slice(0, 3, None), slice(3, 4, None)]
    """
    begin = 0
    for rank in plane_ranks:
        yield slice(begin, begin + rank)
        begin += rank


def rows_of(plane_ranks: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """The rows that have equally many planes, with that number, the most planes first.

    >>> list(rows_of([8, 3, 3]))
    [(slice(0, 3, None), 3), (slice(3, 8, None), 1)]
    """
    begin = 0
    for n_planes in range(len(plane_ranks), 0, -1):
        end = plane_ranks[n_planes - 1]
        if end > begin:
            yield slice(begin, end), n_planes
            begin = end


def decode_rows(bits: npt.NDArray[np.uint8], scale: npt.NDArray[Any], plane_ranks: Sequence[int]) -> F32:
    """The rows that the codes stand for: B of the format.

    Args:
        bits: (..., C, n // 8) signs, a row a code.
        scale: (..., C).
        plane_ranks: r_0, r_1, ...; C is their sum.

    Returns:
        (..., r_0, n) float32.
    """
    return _decoded(unpack_signs(bits, 8 * bits.shape[-1]), scale, plane_ranks)


def decode_columns(bits: npt.NDArray[np.uint8], scale: npt.NDArray[Any], plane_ranks: Sequence[int]) -> F32:
    """The columns that the codes stand for: A of the format.

    Args:
        bits: (..., n, C // 8) signs, a column a code.
        scale: (..., C).
        plane_ranks: r_0, r_1, ...; C is their sum.

    Returns:
        (..., n, r_0) float32.
    """
    signs = unpack_signs(bits, 8 * bits.shape[-1])
    return np.ascontiguousarray(_decoded(signs.swapaxes(-1, -2), scale, plane_ranks).swapaxes(-1, -2))


def _decoded(signs: npt.NDArray[np.int8], scale: npt.NDArray[Any], plane_ranks: Sequence[int]) -> F32:
    """The rows (..., r_0, n) of signs (..., C, n) and scales (..., C)."""
    out = np.zeros((*signs.shape[:-2], plane_ranks[0], signs.shape[-1]), np.float32)
    for rank, codes in zip(plane_ranks, planes_of(plane_ranks), strict=True):
        out[..., :rank, :] += scale[..., codes, None] * signs[..., codes, :]
    return out
