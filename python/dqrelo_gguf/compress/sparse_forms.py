"""What a delta costs and loses as single entries: all that changed, or the largest of them (docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import BLOCK_ELEMENTS, Blocks, row_slices, slices_of
from dqrelo_gguf.compress.pruning import largest
from dqrelo_gguf.compress.sparse import EntryType, from_f8, lists_hold, places_bytes, rounded, row_scales, to_f8

F32 = npt.NDArray[np.float32]

# From this share of changed elements on, signs are cheaper than places, and no form is offered.
MOST_CHANGED: Final = Fraction(1, 2)
MOST_ENTRIES: Final = (1 << 31) - 1  # what the format can count
# The numbers of largest entries that are offered, as shares of all.
SHARES: Final = tuple(Fraction(i, 8) for i in range(1, 8))
_TYPES_OF_16_BITS: Final[tuple[EntryType, ...]] = ("BF16", "F16")
_BYTES: Final = {"F8": 1, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class SparseForm:
    """A way to store a weight as entries.

    Args:
        n_entries: how many, the largest of all matrices.
        type: of their values.
        has_mask: the places are a mask instead of lists.
        n_bytes: of everything.
        error: ||D - D_hat||^2.
    """

    n_entries: int
    type: EntryType
    has_mask: bool
    n_bytes: int
    error: float


@dataclass(frozen=True)
class _Loss:
    """What some rows lose in a type of 16 bits, as squared errors, and whether lists can hold their places."""

    of_type: Mapping[EntryType, float]
    lists_hold: bool


def sparse_forms(D: F32, blocks: Blocks) -> tuple[list[SparseForm], int]:
    """The forms of a weight's delta by ascending bytes, and how many of its elements changed.

    There is no form where half of the elements changed, or all stayed.

    All entries are offered in F8, and where that is not exact in the first of BF16 and F16 that is, or else in the one that
    loses less; shares of them, the largest by magnitude, in F8.

    Args:
        D: (n_mat, n_out, n_in).
        blocks: the threads to work with.
    """
    rows = D.reshape(-1, D.shape[-1])
    slices = row_slices(*rows.shape)
    counts = blocks.run(lambda s: int(np.count_nonzero(rows[s])), slices)
    n = sum(counts)
    if n == 0 or n >= MOST_CHANGED * D.size or n > MOST_ENTRIES:
        return [], n
    places = {
        s.start: slice(end - count, end) for s, count, end in zip(slices, counts, accumulate(counts), strict=True)
    }
    values, lost = np.empty(n, np.float32), np.empty(n, np.float32)  # the entries, and what F8 loses of each

    def step(s: slice) -> _Loss:
        at = places[s.start]
        return _fill(rows[s], values[at], lost[at])

    losses = blocks.run(step, slices)
    shapes = _Rows(*rows.shape, all(part.lists_hold for part in losses))
    forms = [shapes.form(k, "F8", error) for k, error in _of_largest(values, lost)]
    forms.append(shapes.form(n, "F8", _squares(lost)))
    if forms[-1].error > 0:
        of_16_bits = {t: sum(part.of_type[t] for part in losses) for t in _TYPES_OF_16_BITS}
        best = min(_TYPES_OF_16_BITS, key=of_16_bits.__getitem__)
        forms.append(shapes.form(n, best, of_16_bits[best]))
    return sorted(forms, key=lambda form: form.n_bytes), n


def _fill(rows: F32, values: F32, lost: F32) -> _Loss:
    """Puts the entries of some rows into `values`, and what F8 loses of each into `lost`."""
    kept = rows != 0
    values[:] = rows[kept]
    scales = np.repeat(row_scales(np.abs(rows).max(axis=-1)), np.count_nonzero(kept, axis=-1))
    lost[:] = values - from_f8(to_f8(values / scales)) * scales
    of_type = {t: _squares(values - rounded(values, t)) for t in _TYPES_OF_16_BITS}
    return _Loss(of_type, lists_hold(kept))


@dataclass(frozen=True)
class _Rows:
    """The rows of a weight: how many, how long, and whether lists can hold the places of its entries."""

    n_rows: int
    n_in: int
    lists_hold: bool

    def form(self, n_entries: int, entry_type: EntryType, error: float) -> SparseForm:
        """So many entries with the smaller kind of places."""
        mask, lists = (places_bytes(n_entries, self.n_rows, self.n_in, has_mask) for has_mask in (True, False))
        has_mask = mask <= lists or not self.lists_hold
        of_rows = 4 * self.n_rows * (2 if entry_type == "F8" else 1)  # starts, and scales
        n_bytes = (mask if has_mask else lists) + of_rows + n_entries * _BYTES[entry_type]
        return SparseForm(n_entries, entry_type, has_mask, n_bytes, error)


def _of_largest(values: F32, lost: F32) -> Iterator[tuple[int, float]]:
    """Numbers of largest entries, with the squared error of those in F8 and none of the others."""
    magnitudes = np.abs(values)
    for k in sorted({int(share * len(values)) for share in SHARES} - {0}):
        mask = largest(magnitudes, k)
        pieces = slices_of(len(values), BLOCK_ELEMENTS)
        yield k, sum(_squares(np.where(mask[s], lost[s], values[s])) for s in pieces)


def _squares(values: F32) -> float:
    """The sum of squares."""
    return float(sum(np.square(values[s], dtype=np.float64).sum() for s in slices_of(len(values), BLOCK_ELEMENTS)))
