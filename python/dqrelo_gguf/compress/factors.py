"""Storage types of the factors U and V: F16 by default, or any other that the format allows."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf._pin import gguf

# It maps the option's spelling to GGUF's name of the type.
FACTOR_TYPES: Final = {"f16": "F16", "bf16": "BF16", "f32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def type_of(type_name: str) -> gguf.GGMLQuantizationType:
    """The type with GGUF's name."""
    return gguf.GGMLQuantizationType[type_name]


def block_of(type_name: str) -> int:
    """Elements in a block of the type: a row must be a multiple of it."""
    return int(gguf.GGML_QUANT_SIZES[type_of(type_name)][0])


def row_bytes(type_name: str, n: int) -> int:
    """Bytes of a row of n elements."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[type_of(type_name)]
    return n // int(block) * int(n_bytes)


def store_factor(factor: torch.Tensor, type_name: str) -> npt.NDArray[np.generic]:
    """A float32 matrix (rows, cols) in its storage type: (rows, cols) for F16 and F32, (rows, row bytes) otherwise."""
    values = factor.contiguous().cpu().numpy()
    with np.errstate(over="ignore"):  # The caller finds an overflow, and names it.
        stored: npt.NDArray[np.generic] = gguf.quants.quantize(values, type_of(type_name))
    return stored


def stored_values(stored: npt.NDArray[np.generic], type_name: str) -> torch.Tensor:
    """The float32 values of a stored matrix."""
    values = gguf.quants.dequantize(stored, type_of(type_name))
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
