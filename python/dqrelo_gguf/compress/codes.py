"""Vectors of few bits: each row of a matrix as a sum of sign planes that have scales of their own.

Row k of a matrix is coded with `b_k` planes of signs, `x_k ~ sum over q of scale_qk s_qk`, b_0 >= b_1 >= ... The codes are
numbered plane after plane (docs/format.md, section 1): plane q covers the leading r_q rows.

    plane 0   rows 0 .............. r_0 - 1        codes 0 ......... r_0 - 1
    plane 1   rows 0 ..... r_1 - 1                 codes r_0 ....... r_0 + r_1 - 1
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.signs import unpack_signs

F32 = npt.NDArray[np.float32]


def planes_of(plane_ranks: Sequence[int]) -> Iterator[slice]:
    """The codes of each plane.

    >>> list(planes_of([3, 1]))
    [slice(0, 3, None), slice(3, 4, None)]
    """
    begin = 0
    for rank in plane_ranks:
        yield slice(begin, begin + rank)
        begin += rank


def decode_rows(bits: npt.NDArray[np.uint8], scale: npt.NDArray[Any], plane_ranks: Sequence[int]) -> F32:
    """The rows that the codes stand for: B of the format.

    Args:
        bits: (..., C, n // 8) signs, a row a code.
        scale: (..., C).
        plane_ranks: r_0, r_1, ...; C is their sum.

    Returns:
        (..., r_0, n) float32.
    """
    n = 8 * bits.shape[-1]
    out = np.zeros((*bits.shape[:-2], plane_ranks[0], n), np.float32)
    for rank, codes in zip(plane_ranks, planes_of(plane_ranks), strict=True):
        out[..., :rank, :] += scale[..., codes, None] * unpack_signs(bits[..., codes, :], n)
    return out


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
    out = np.zeros((*bits.shape[:-1], plane_ranks[0]), np.float32)
    for rank, codes in zip(plane_ranks, planes_of(plane_ranks), strict=True):
        out[..., :rank] += scale[..., None, codes] * signs[..., codes]
    return out
