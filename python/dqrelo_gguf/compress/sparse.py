"""Single entries of a delta: the changed elements alone, with their places (docs/format.md, section 1, "Sparse weights").

Places are a bit for each element, or for each block of 256 columns the number of its entries and the column of each of them
inside the block. F8 is the upper byte of an F16, so it has two bits behind the leading one, times a scale of its row. The
scale is a power of two: a change of a few units in the last place is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.factors import store_factor, stored_values

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
EntryType = Literal["F8", "BF16", "F16"]

BLOCK_COLUMNS: Final = 256
# A block of the lists counts its entries in a byte: one that is full needs the mask.
MOST_IN_BLOCK: Final = 255
# The largest entry of a row is 2^14 to 2^15 times its scale: rounding it up cannot leave F16, and what is 2^30 times
# smaller is still exact.
_TOP_EXPONENT = 14
_LEAST_EXPONENT = -14  # of a normal F16
_BITS_BEHIND = 2
_LEAST_SCALE_EXPONENT = -126  # A scale is a normal F32.


@dataclass(frozen=True)
class Sparse:
    """The entries of a weight as the format stores them. n_expert axes are there for stacked matrices only.

    Args:
        start: int32 ([n_expert,] n_out), how many entries the rows before have, those of all matrices counted.
        values: (n_entries,) row after row, columns ascending; uint8 where they are F8, otherwise float32.
        scale: float32 ([n_expert,] n_out) of each row where they are F8; None otherwise.
        mask: uint8 ([n_expert,] n_out, n_in / 8), 1 where an entry is, in the bit order of signs.py; None where there are lists.
        count: uint8 ([n_expert,] n_out, blocks), entries of each block of 256 columns; None where there is a mask.
        column: uint8 (n_entries,), the column of each entry inside its block; None where there is a mask.
    """

    start: npt.NDArray[np.int32]
    values: npt.NDArray[Any]
    scale: F32 | None = None
    mask: Bytes | None = None
    count: Bytes | None = None
    column: Bytes | None = None

    @property
    def row_counts(self) -> Indices:
        """How many entries each row has, in the shape of `start`."""
        if self.mask is not None:
            counts: Indices = np.bitwise_count(self.mask).sum(axis=-1, dtype=np.int64)
        else:
            assert self.count is not None
            counts = self.count.sum(axis=-1, dtype=np.int64)
        return counts


def pack(D: F32, kept: npt.NDArray[np.bool_], entry_type: EntryType, has_mask: bool) -> Sparse:
    """Some elements of a delta as entries.

    Args:
        D: ([n_expert,] n_out, n_in), n_in a multiple of 8.
        kept: the same shape, True for an entry.
        entry_type: what their values are rounded to.
        has_mask: the places are a mask; otherwise lists, which `lists_hold` must allow.

    >>> D = np.array([[0, 0.75, 0, 0, -1.5, 0, 0, 0]], np.float32)
    >>> packed = pack(D, D != 0, "F8", has_mask=True)
    >>> packed.mask.tolist(), packed.values.tolist(), packed.scale.tolist()
    ([[18]], [114, 246], [6.103515625e-05])
    """
    counts = np.count_nonzero(kept, axis=-1)
    ends = np.cumsum(counts.reshape(-1), dtype=np.int64)
    start = (ends - counts.reshape(-1)).astype(np.int32).reshape(counts.shape)
    values: npt.NDArray[Any] = D[kept]
    scale = None
    if entry_type == "F8":
        scale = row_scales(np.maximum(D.max(-1, initial=0, where=kept), -D.min(-1, initial=0, where=kept)))
        values = to_f8(values / np.repeat(scale.reshape(-1), counts.reshape(-1)))
    else:
        values = rounded(values, entry_type)
    if has_mask:
        return Sparse(start, values, scale, mask=np.packbits(kept, axis=-1, bitorder="little"))
    columns = np.flatnonzero(kept) % D.shape[-1] % BLOCK_COLUMNS
    return Sparse(start, values, scale, count=block_counts(kept).astype(np.uint8), column=columns.astype(np.uint8))


def unpack(sparse: Sparse, n_in: int) -> F32:
    """D_hat: the entries at their places, zeros elsewhere; float32 ([n_expert,] n_out, n_in).

    >>> unpack(Sparse(np.zeros(1, np.int32), np.float32([0.75]), mask=np.array([[18 - 2]], np.uint8)), 8).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.75, 0.0, 0.0, 0.0]]
    """
    D_hat = np.zeros((*sparse.start.shape, n_in), np.float32)
    values = sparse.values
    if sparse.scale is not None:
        values = from_f8(values) * np.repeat(sparse.scale.reshape(-1), sparse.row_counts.reshape(-1))
    D_hat.reshape(-1)[_places(sparse, n_in)] = values
    return D_hat


def _places(sparse: Sparse, n_in: int) -> Indices:
    """The flat index of each entry."""
    if sparse.mask is not None:
        return np.flatnonzero(np.unpackbits(sparse.mask.reshape(-1), bitorder="little"))
    assert sparse.count is not None
    assert sparse.column is not None
    n_blocks = sparse.count.shape[-1]
    block = np.repeat(np.arange(sparse.count.size), sparse.count.reshape(-1))
    places: Indices = block // n_blocks * n_in + block % n_blocks * BLOCK_COLUMNS + sparse.column
    return places


def block_counts(kept: npt.NDArray[np.bool_]) -> Indices:
    """How many elements of each block of columns are kept, (..., blocks)."""
    starts = np.arange(0, kept.shape[-1], BLOCK_COLUMNS)
    counts: Indices = np.add.reduceat(kept, starts, axis=-1, dtype=np.int64)
    return counts


def lists_hold(kept: npt.NDArray[np.bool_]) -> bool:
    """Whether lists can say where these are: no block is full."""
    return int(block_counts(kept).max()) <= MOST_IN_BLOCK


def places_bytes(n_entries: int, n_rows: int, n_in: int, has_mask: bool) -> int:
    """Bytes of the places of so many entries of so many rows; without the starts, which both forms have."""
    return n_rows * (n_in // 8) if has_mask else n_entries + n_rows * -(-n_in // BLOCK_COLUMNS)


def row_scales(largest: F32) -> F32:
    """The scale of rows by their largest magnitude: a power of two; 1 where that is 0."""
    _, exponent = np.frexp(largest)
    power = np.maximum(exponent - 1 - _TOP_EXPONENT, _LEAST_SCALE_EXPONENT)
    return np.where(largest > 0, np.ldexp(np.float32(1), power), 1).astype(np.float32)


def to_f8(scaled: npt.NDArray[np.floating[Any]]) -> Bytes:
    """Numbers of at most 2^15 as the nearest F8, of two equally near the one whose last bit is 0.

    >>> to_f8(np.array([1, -1.25, 1.3, 1.125], np.float32)).tolist()
    [60, 189, 61, 60]
    """
    _, exponent = np.frexp(scaled)
    step = np.maximum(exponent - 1, _LEAST_EXPONENT) - _BITS_BEHIND
    nearest = np.ldexp(np.rint(np.ldexp(scaled, -step)), step)
    stored: Bytes = (nearest.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8)
    return stored


def from_f8(stored: Bytes) -> F32:
    """What F8 bytes mean, without the scale."""
    return (stored.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def rounded(values: F32, entry_type: EntryType) -> F32:
    """The nearest numbers of a 16-bit type; infinite where they overflow it."""
    if values.size == 0:
        return values
    return stored_values(store_factor(torch.from_numpy(values), entry_type), entry_type).numpy()
