"""Sign bits. The bit order of the format is defined here and in docs/format.md:

bit b (0 = least significant) of byte k in a row is the sign of column 8 k + b; 1 is +1, 0 is -1; sign(0) is -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.errors import ShapeError


def pack_signs(delta: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The sign bits of an array.

    Args:
        delta: (..., n_in), any real type; n_in a multiple of 8.

    Returns:
        (..., n_in // 8) bytes.

    Raises:
        ShapeError: n_in is not a multiple of 8.

    >>> import numpy as np
    >>> hex(pack_signs(np.array([1.0, -1, -1, 1, 1, -1, 1, 0]))[0])
    '0x59'
    """
    if delta.shape[-1] % 8 != 0:
        raise ShapeError(f"signs: row length {delta.shape[-1]} is not a multiple of 8")
    return np.packbits(delta > 0, axis=-1, bitorder="little")


def unpack_signs(bits: npt.NDArray[np.uint8], n_in: int) -> npt.NDArray[np.int8]:
    """The signs as numbers.

    Args:
        bits: (..., n_in // 8) bytes.
        n_in: row length in columns.

    Returns:
        (..., n_in), each +1 or -1.

    Raises:
        ShapeError: the rows do not have n_in columns.

    >>> import numpy as np
    >>> unpack_signs(np.array([0x59], np.uint8), 8).tolist()
    [1, -1, -1, 1, 1, -1, 1, -1]
    """
    if bits.shape[-1] * 8 != n_in:
        raise ShapeError(f"signs: {bits.shape[-1]} bytes a row, expected {n_in}/8")
    ones = np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little").view(np.int8)
    ones += ones  # {0, 1} becomes {0, 2} and then {-1, +1}, without a second array.
    ones -= 1
    return ones
