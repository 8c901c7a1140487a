"""Whether the places of a sparse weight's entries agree with each other: docs/format.md, section 4, point 6."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.errors import shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
# Rows that are checked together: what is found out of their entries takes some bytes each.
_ROWS = 4096


def check_entries(file: GGUFFile, name: str, n_in: int, n_entries: int) -> None:
    """Checks the places of a sparse weight. Its tensors' types, shapes and sizes are known to be right.

    Args:
        file: where it is.
        name: of the weight.
        n_in: its row length.
        n_entries: that it declares.

    Raises:
        FormatError: they are not so many places inside the matrix, row after row, columns ascending.
    """
    counts = _row_counts(file, name, n_in, n_entries)
    ends = np.cumsum(counts)
    if ends[-1] != n_entries:
        what = fmt.SUFFIX_MASK if name + fmt.SUFFIX_MASK in file.tensors else fmt.SUFFIX_COUNT
        file.fail(f"tensor '{shown(name + what)}' has the places of {ends[-1]} entries, expected {n_entries}")
    starts = file.raw(file.tensors[name + fmt.SUFFIX_START]).view("<i4")
    wrong = np.flatnonzero(starts != ends - counts)
    if wrong.size:
        i, where = wrong[0], f"tensor '{shown(name + fmt.SUFFIX_START)}'"
        file.fail(f"{where} has {starts[i]} for row {i}, expected {ends[i] - counts[i]}")


def _row_counts(file: GGUFFile, name: str, n_in: int, n_entries: int) -> Indices:
    """How many entries each row has, those of all matrices one after the other; checks the columns of lists."""
    mask = file.tensors.get(name + fmt.SUFFIX_MASK)
    if mask is not None:
        of_bits: Indices = np.bitwise_count(file.raw(mask)).reshape(-1, n_in // 8).sum(axis=1, dtype=np.int64)
        return of_bits
    count, column = (file.tensors[name + suffix] for suffix in (fmt.SUFFIX_COUNT, fmt.SUFFIX_COLUMN))
    counts = file.raw(count).reshape(-1, count.ne[0])
    of_rows: Indices = counts.sum(axis=1, dtype=np.int64)
    if of_rows.sum() == n_entries:
        columns, ends = file.raw(column), np.cumsum(of_rows)
        for first in range(0, len(counts), _ROWS):
            some = slice(first, min(first + _ROWS, len(counts)))
            at = int(ends[first] - of_rows[first])
            wrong = _wrong_column(counts[some], columns[at : ends[some.stop - 1]], n_in)
            if wrong is not None:
                k, expected = at + wrong[0], wrong[1]
                file.fail(f"tensor '{shown(column.name)}' has column {columns[k]} in entry {k}, expected {expected}")
    return of_rows


def _wrong_column(counts: Bytes, columns: Bytes, n_in: int) -> tuple[int, str] | None:
    """The first entry whose column does not ascend inside its block or is not one of the row, and what was expected.

    Args:
        counts: (rows, blocks).
        columns: one for each that is counted.
        n_in: row length.
    """
    blocks = np.repeat(np.arange(counts.size), counts.reshape(-1))
    widths = np.minimum(n_in - fmt.BLOCK_COLUMNS * (blocks % counts.shape[1]), fmt.BLOCK_COLUMNS)
    follows = blocks[1:] == blocks[:-1]
    wrong = columns >= widths
    wrong[1:] |= follows & (columns[1:] <= columns[:-1])
    if not wrong.any():
        return None
    k = int(wrong.argmax())
    descends = k > 0 and bool(follows[k - 1]) and columns[k] <= columns[k - 1]
    return k, f"more than {columns[k - 1]}" if descends else f"less than {widths[k]}"
