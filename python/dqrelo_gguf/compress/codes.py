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

from dqrelo_gguf.compress.blocks import CPU, Blocks, row_slices
from dqrelo_gguf.compress.signs import unpack_signs

F32 = npt.NDArray[np.float32]

# The step of the best uniform quantiser of 2^b levels for a Gaussian variable of variance 1 (Max, 1960, Table II), b from 1.
_GAUSSIAN_STEP = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
MAX_PLANES = len(_GAUSSIAN_STEP)
# Middles that are all compared with each magnitude: those of four planes.
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
    if X.device != CPU:
        return code_rows_by_tensors(X, n_planes)
    from dqrelo_gguf.native import core

    found = core.code_rows(X.numpy(), n_planes, _GAUSSIAN_STEP[n_planes - 1])
    return Coded(*map(torch.from_numpy, found))


def code_rows_by_tensors(X: torch.Tensor, n_planes: int) -> Coded:
    """The same by torch's functions, on any device; several times slower on a CPU.

    A row's values come in pairs of both signs, whose codes are complements of each other. So the value is chosen by the magnitude alone,
    and the sign, that of x > 0, turns it and its code over.

    Args:
        X: (k, n) float32, contiguous.
        n_planes: b, 1 to MAX_PLANES.
    """
    magnitudes = X.abs()
    begin = upper_half(gaussian_scales(X.square().mean(dim=1, keepdim=True).sqrt(), n_planes))
    scales = fitted_scales(*level_sums(magnitudes, begin.middles), begin, n_planes)
    return _code_by(X, magnitudes, scales)


def code_by(X: torch.Tensor, scales: torch.Tensor) -> Coded:
    """Codes a matrix whose scales are known.

    Args:
        X: (k, n) float32, contiguous.
        scales: (k, b) float32, or (1, b) for all rows; b is 1 to 4 then.
    """
    return _code_by(X, X.abs(), scales)


def _code_by(X: torch.Tensor, magnitudes: torch.Tensor, scales: torch.Tensor) -> Coded:
    values, codes = _nearest(magnitudes, upper_half(scales))
    is_above = X > 0
    values *= 2 * is_above.view(torch.uint8).float() - 1
    codes ^= (~is_above).view(torch.uint8) * (2 ** scales.shape[1] - 1)
    return Coded(values, scales, codes)


@dataclass(frozen=True)
class UpperHalf:
    """What the magnitudes of rows can be, ascending.

    Args:
        values: (k, 2^(b-1)).
        middles: (k, 2^(b-1) - 1) between them.
        codes: (k, 2^(b-1)) of the values.
    """

    values: torch.Tensor
    middles: torch.Tensor
    codes: torch.Tensor


def upper_half(scales: torch.Tensor) -> UpperHalf:
    """The values of rows with these scales (k, b) that are not negative."""
    values, middles, codes = levels_of(scales)
    half = values.shape[1] // 2
    return UpperHalf(values[:, half:], middles[:, half:], codes[:, half:])


def gaussian_scales(rms: torch.Tensor, n_planes: int) -> torch.Tensor:
    """The scales (k, b) of the best uniform quantisers of rows with root mean squares (k, 1), if these are Gaussian."""
    return rms * (_GAUSSIAN_STEP[n_planes - 1] / 2 * 2.0 ** torch.arange(n_planes, device=rms.device))


def _sign_table(n_planes: int, like: torch.Tensor) -> torch.Tensor:
    """(2^b, b): the signs of every code, in the type and on the device of a tensor."""
    bits = torch.arange(2**n_planes, device=like.device)[:, None] >> torch.arange(n_planes, device=like.device)
    return (2 * (bits & 1) - 1).to(like.dtype)


def levels_of(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the numbers of rows with these scales (k, b) can be.

    Returns:
        The values in ascending order (k, 2^b), the middles between them (k, 2^b - 1), and the values' codes (k, 2^b).
    """
    levels, codes = (scales @ _sign_table(scales.shape[1], scales).T).sort(dim=1)
    return levels, ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous(), codes


def places(middles: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """How many of its row's 2^b - 1 ascending middles (k, 2^b - 1) each element of X (k, n) exceeds; int64.

    What torch.searchsorted finds, several times faster: the middles are halved b times.
    """
    found = X.new_zeros(X.shape, dtype=torch.int64)
    half = (middles.shape[1] + 1) // 2
    while half > 0:
        found += (torch.gather(middles, 1, found + (half - 1)) < X) * half
        half //= 2
    return found


def _above(magnitudes: torch.Tensor, middles: torch.Tensor) -> Iterator[torch.Tensor]:
    """Which magnitudes are above each of the middles, as bytes 0 and 1."""
    for i in range(middles.shape[1]):
        yield (magnitudes > middles[:, i : i + 1]).view(torch.uint8)


def _nearest(magnitudes: torch.Tensor, levels: UpperHalf) -> tuple[torch.Tensor, torch.Tensor]:
    """Each magnitude's nearest value (k, n), and its code (k, n) uint8."""
    codes = levels.codes.to(torch.uint8)
    if levels.middles.shape[1] > _MOST_COMPARED:
        place = places(levels.middles, magnitudes)
        return torch.gather(levels.values, 1, place), torch.gather(codes, 1, place)
    # Sums of steps are several times faster than a choice: the code's wrap around, and come out right.
    found = levels.values[:, :1].expand_as(magnitudes).contiguous()
    found_codes = codes[:, :1].expand_as(magnitudes).contiguous()
    steps = zip(levels.values.diff(dim=1).T, codes.diff(dim=1).T, _above(magnitudes, levels.middles), strict=True)
    for step, code_step, is_above in steps:
        found += is_above.float() * step[:, None]
        found_codes += is_above * code_step[:, None]
    return found, found_codes


def level_sums(magnitudes: torch.Tensor, middles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many magnitudes of a row are nearest to each value (k, 2^(b-1)), and what they add up to.

    Args:
        magnitudes: (k, n).
        middles: between the values, (k, 2^(b-1) - 1), or one row for all, of at most four planes.
    """
    k, n = magnitudes.shape
    n_levels = middles.shape[1] + 1
    if n_levels - 1 > _MOST_COMPARED:
        flat = (places(middles, magnitudes) + torch.arange(k, device=magnitudes.device)[:, None] * n_levels).view(-1)
        count = torch.bincount(flat, minlength=k * n_levels)
        total = torch.bincount(flat, weights=magnitudes.view(-1), minlength=k * n_levels)
        return count.view(k, n_levels).float(), total.view(k, n_levels).float()
    counts, totals = [magnitudes.new_full((k,), float(n))], [magnitudes.sum(dim=1)]
    for is_above in _above(magnitudes, middles):
        weights = is_above.float()
        counts.append(weights.sum(dim=1))
        totals.append(torch.linalg.vecdot(magnitudes, weights))
    none = magnitudes.new_zeros(k)
    count, total = (-torch.stack([*sums, none]).diff(dim=0).T for sums in (counts, totals))
    return count, total


def fitted_scales(count: torch.Tensor, total: torch.Tensor, levels: UpperHalf, n_planes: int) -> torch.Tensor:
    """The scales (k, b) of least squares for the signs that the elements of rows have now, exact in BF16; float32.

    A row enters the equations by how many magnitudes are nearest to each level, and by their sums (level_sums).

    Args:
        count: of magnitudes, (k, 2^(b-1)).
        total: their sums, (k, 2^(b-1)).
        levels: of the rows.
        n_planes: b.
    """
    signs = _sign_table(n_planes, count)[levels.codes]  # (k, 2^(b-1), b)
    left = torch.einsum("kl,klp,klq->kpq", count, signs, signs)
    right = torch.einsum("kl,klp->kp", total, signs)
    # Two planes with equal signs share their scale: the ridge makes the equations solvable.
    ridge = 1e-6 * count.sum(dim=1)[:, None, None] * torch.eye(n_planes, dtype=count.dtype, device=count.device)
    scales: torch.Tensor = torch.linalg.solve(left + ridge, right)
    return scales.bfloat16().float()


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
