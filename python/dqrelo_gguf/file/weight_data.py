"""The arrays of one weight, and their bytes as a delta file stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.sparse import Sparse
from dqrelo_gguf.errors import NonFiniteError, ShapeError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.finite import n_not_finite
from dqrelo_gguf.file.layout import TensorSpec, Type, WeightSpec, type_name

Floats = npt.NDArray[np.floating[Any]]
# The types of arrays that are stored as they are: bits and bytes, and indices.
_INTEGERS = {Type.I8: np.dtype(np.uint8), Type.I32: np.dtype("<i4")}


@dataclass(frozen=True)
class SignFactors:
    """The factors A and B of few bits (docs/format.md, section 1), with C codes.

    Args:
        v_bits: signs of B, uint8 ([n_expert,] C, n_in // 8).
        v_scale: ([n_expert,] C).
        u_bits: signs of A, uint8 ([n_expert,] n_out, C // 8).
        u_scale: ([n_expert,] C).
    """

    v_bits: npt.NDArray[np.uint8]
    v_scale: Floats
    u_bits: npt.NDArray[np.uint8]
    u_scale: Floats


@dataclass
class WeightData:
    """The delta of one weight. n_expert axes are there for stacked matrices only.

    Args:
        planes: per plane (sign bits uint8 ([n_expert,] n_out, n_in // 8),
            scale f32 (1,), (n_out,), (n_expert, 1) or (n_expert, n_out)).
        cscale: ([n_expert,] n_in), or None.
        u: ([n_expert,] n_out, rank), any float type, or None. Singular values are folded in.
        v: ([n_expert,] rank, n_in), or None.
        sign_factors: the factors of few bits, or None.
        dense: the whole delta in the weight's numpy shape, or None.
        sparse: single entries, or None.
        error_delta: ||D - D_hat|| / ||D||.
        error_weight: ||W_ft - W_hat|| / ||W_ft||.
        error_outputs: the root mean square of (D - D_hat) x over that of D x, for the inputs x of a calibration; None without.
    """

    planes: Sequence[tuple[npt.NDArray[np.uint8], Floats]] = ()
    cscale: Floats | None = None
    u: Floats | None = None
    v: Floats | None = None
    sign_factors: SignFactors | None = None
    dense: Floats | None = None
    sparse: Sparse | None = None
    error_delta: float = 0.0
    error_weight: float = 0.0
    error_outputs: float | None = None


@dataclass(frozen=True)
class Pack:
    """The delta of one weight as the file has it: what goes from one process to another, and to the disk.

    Args:
        tensors: the data bytes of each of its tensors, uint8, in file order.
        error_delta: WeightData's, as the two below.
        error_weight: see above.
        error_outputs: see above.
    """

    tensors: tuple[npt.NDArray[np.uint8], ...]
    error_delta: float
    error_weight: float
    error_outputs: float | None = None


def packed(spec: WeightSpec, data: WeightData) -> Pack:
    """The arrays of a weight in their stored types; they may share the arrays' memory.

    Raises:
        ShapeError: an array does not fit the weight's spec.
        NonFiniteError: an array holds NaN or infinity, or overflows its stored type.
    """
    pairs = zip(spec.tensors(), arrays_of(spec, data), strict=True)
    tensors = tuple(np.frombuffer(tensor_bytes(tensor, values), np.uint8) for tensor, values in pairs)
    return Pack(tensors, float(data.error_delta), float(data.error_weight), data.error_outputs)


def arrays_of(spec: WeightSpec, data: WeightData) -> list[npt.NDArray[Any]]:
    """The arrays of a weight in file order."""
    codes, has_codes = data.sign_factors, bool(spec.plane_ranks)
    parts: list[tuple[str, bool, npt.NDArray[Any] | None]] = [
        (fmt.SUFFIX_DENSE, spec.dense_type is not None, data.dense),
        (fmt.SUFFIX_CSCALE, spec.cscale, data.cscale),
        (fmt.SUFFIX_U, spec.rank > 0, data.u),
        (fmt.SUFFIX_V, spec.rank > 0, data.v),
        (fmt.SUFFIX_VSIGN, has_codes, None if codes is None else codes.v_bits),
        (fmt.SUFFIX_VSCALE, has_codes, None if codes is None else codes.v_scale),
        (fmt.SUFFIX_USIGN, has_codes, None if codes is None else codes.u_bits),
        (fmt.SUFFIX_USCALE, has_codes, None if codes is None else codes.u_scale),
        *_sparse_parts(spec, data.sparse),
    ]
    if len(data.planes) != spec.n_planes:
        raise ShapeError(f"{spec.name}: got {len(data.planes)} sign planes, expected {spec.n_planes}")
    arrays: list[npt.NDArray[Any]] = [a for plane in data.planes for a in plane]
    for suffix, expected, array in parts:
        if expected != (array is not None):
            raise ShapeError(f"{spec.name}{suffix}: {'is missing' if expected else 'was given but not planned'}")
        if array is not None:
            arrays.append(array)
    return arrays


def _sparse_parts(spec: WeightSpec, sparse: Sparse | None) -> list[tuple[str, bool, npt.NDArray[Any] | None]]:
    """The suffix of each tensor of a sparse weight, whether it is planned, and what was given; in file order."""
    planned, given = spec.sparse, sparse
    has_lists = planned is not None and not planned.has_mask
    return [
        (fmt.SUFFIX_MASK, planned is not None and planned.has_mask, None if given is None else given.mask),
        (fmt.SUFFIX_COUNT, has_lists, None if given is None else given.count),
        (fmt.SUFFIX_COLUMN, has_lists, None if given is None else given.column),
        (fmt.SUFFIX_START, planned is not None, None if given is None else given.start),
        (fmt.SUFFIX_ENTRY, planned is not None, None if given is None else given.values),
        (
            fmt.SUFFIX_ESCALE,
            planned is not None and planned.type == Type.I8,
            None if given is None else given.scale,
        ),
    ]


def tensor_bytes(tensor: TensorSpec, values: npt.NDArray[Any]) -> memoryview:
    """A tensor's data bytes in its stored type."""
    shape = tuple(reversed(tensor.ne))
    values = np.asarray(values)
    if values.shape != shape and not _same_but_for_ones(values.shape, shape):
        raise ShapeError(f"{tensor.name}: array has shape {values.shape}, expected {shape}")
    values = values.reshape(shape)
    if tensor.type in _INTEGERS:
        expected = _INTEGERS[tensor.type]
        if values.dtype != expected:
            raise ShapeError(f"{tensor.name}: array has type {values.dtype}, expected {expected}")
        return _finite(tensor, np.ascontiguousarray(values))
    values = np.ascontiguousarray(values, dtype=np.float32)
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise NonFiniteError(f"{tensor.name}: {n_bad} of {values.size} values are NaN or infinite")
    with np.errstate(over="ignore"):
        if tensor.type == Type.F16:
            encoded = values.astype("<f2")
        elif tensor.type == Type.F32:
            encoded = values.astype("<f4", copy=False)
        else:
            encoded = np.ascontiguousarray(gguf.quants.quantize(values, tensor.type))
    return _finite(tensor, encoded)


def _finite(tensor: TensorSpec, stored: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array in its stored type, none of whose numbers may have overflowed."""
    raw = stored.data.cast("B")
    n_bad = n_not_finite(tensor, np.frombuffer(raw, np.uint8))
    if n_bad:
        raise NonFiniteError(f"{tensor.name}: {n_bad} numbers are too large for {type_name(tensor.type)}")
    return raw


def _same_but_for_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    return [n for n in a if n != 1] == [n for n in b if n != 1]
