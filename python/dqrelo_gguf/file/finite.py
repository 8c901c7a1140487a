"""NaN and infinity in stored numbers, found by their bits: all bits of the exponent are 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import ValueType
from dqrelo_gguf.file.layout import TensorSpec, Type, type_bytes

_F8 = ("<u1", 0x7C)  # the upper byte of an F16
_F16, _BF16, _F32 = ("<u2", 0x7C00), ("<u2", 0x7F80), ("<u4", 0x7F800000)
# Quantised types have blocks that begin with their scale, F16.
_OF_TENSORS = {Type.F32: _F32, Type.F16: _F16, Type.BF16: _BF16, Type.Q8_0: _F16, Type.Q4_0: _F16}
_OF_VALUES = {ValueType.FLOAT32: _F32, ValueType.FLOAT64: ("<u8", 0x7FF0000000000000)}


def has_floats(tensor: TensorSpec) -> bool:
    """Whether a tensor has numbers that may be none: signs have not."""
    return _exponent_of(tensor) is not None


def n_not_finite(tensor: TensorSpec, raw: npt.NDArray[np.uint8]) -> int:
    """How many numbers of a tensor's data are NaN or infinite; of a quantised type, the blocks with such a scale.

    Args:
        tensor: one without floats has none.
        raw: its bytes.
    """
    exponent = _exponent_of(tensor)
    return 0 if exponent is None else _count(*exponent, type_bytes(tensor.type), raw)


def _exponent_of(tensor: TensorSpec) -> tuple[str, int] | None:
    """The integers that the numbers are read as, and the bits of the exponent in them; None for a tensor without floats."""
    is_f8 = tensor.declared == fmt.DQ_ENTRY and tensor.type == Type.I8
    return _F8 if is_f8 else _OF_TENSORS.get(tensor.type)


def n_not_finite_values(value_type: ValueType, raw: npt.NDArray[np.uint8]) -> int:
    """The same of the bytes of a metadata value, or of an array's items."""
    if value_type not in _OF_VALUES:
        return 0
    dtype, exponent = _OF_VALUES[value_type]
    return _count(dtype, exponent, np.dtype(dtype).itemsize, raw)


def _count(dtype: str, exponent: int, stride: int, raw: npt.NDArray[np.uint8]) -> int:
    if raw.size == 0:
        return 0
    bits: npt.NDArray[Any] = np.ndarray(raw.size // stride, dtype, raw.data, strides=(stride,))
    return int(np.count_nonzero((bits & exponent) == exponent))
