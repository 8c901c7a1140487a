"""Stored values as numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import Type, type_name

# The numpy types of the GGUF types that are no blocks. Other types are read as bytes.
PLAIN_DTYPES: Final[dict[Type, np.dtype[Any]]] = {
    Type.F16: np.dtype("<f2"),
    Type.F32: np.dtype("<f4"),
    Type.F64: np.dtype("<f8"),
    Type.I8: np.dtype("<i1"),
    Type.I16: np.dtype("<i2"),
    Type.I32: np.dtype("<i4"),
    Type.I64: np.dtype("<i8"),
}
INTEGER_TYPES: Final = (Type.I8, Type.I16, Type.I32, Type.I64)


def dequantised(stored: npt.NDArray[Any], t: Type, where: str) -> npt.NDArray[np.float32]:
    """Values as float32; a new array.

    Args:
        stored: values of a plain type in any shape, or rows of blocks as bytes, (..., row bytes).
        t: the type that they are stored in.
        where: file and tensor, for the error.

    Raises:
        InputError: gguf cannot dequantise the type.
    """
    if t in PLAIN_DTYPES:
        return stored.astype(np.float32)
    try:
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(stored, t)
    except NotImplementedError as e:
        raise InputError(
            f"{where} has type {type_name(t)}, which gguf cannot dequantise. Use a file of another type"
        ) from e
    return values
