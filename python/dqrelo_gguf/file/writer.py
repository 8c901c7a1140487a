"""Writes a delta file, one weight at a time.

The header's size does not depend on what is learned while writing (digests, errors), so it is written with placeholders
first and again at the end; the data in between is streamed. The file grows under a temporary name beside the target and
is renamed when whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import (
    DiskFullError,
    FormatError,
    InputError,
    NonFiniteError,
    OutputExistsError,
    ShapeError,
    raise_os_error,
)
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFValue, ValueType, pack_header
from dqrelo_gguf.file.fingerprint import BaseIdentity
from dqrelo_gguf.file.layout import TensorSpec, Type, WeightSpec, content_hash, padded_bytes, padded_ne
from dqrelo_gguf.model.vocabulary import Token

__all__ = ["DeltaMeta", "DeltaWriter", "WeightData", "WeightSpec", "delta_ratio"]

Floats = npt.NDArray[np.floating[Any]]

_NO_SHA256 = "0" * 64  # placeholder of the same length


@dataclass
class WeightData:
    """The delta of one weight. n_expert axes are there for stacked matrices only.

    Args:
        planes: per plane (sign bits uint8 ([n_expert,] n_out, n_in // 8),
            scale f32 (1,), (n_out,), (n_expert, 1) or (n_expert, n_out)).
        cscale: ([n_expert,] n_in), or None.
        u: ([n_expert,] n_out, rank), any float type, or None. Singular values are folded in.
        v: ([n_expert,] rank, n_in), or None.
        dense: the whole delta in the weight's numpy shape, or None.
        error_delta: ||D - D_hat|| / ||D||.
        error_weight: ||W_ft - W_hat|| / ||W_ft||.
    """

    planes: Sequence[tuple[npt.NDArray[np.uint8], Floats]] = ()
    cscale: Floats | None = None
    u: Floats | None = None
    v: Floats | None = None
    dense: Floats | None = None
    error_delta: float = 0.0
    error_weight: float = 0.0


@dataclass(frozen=True)
class DeltaMeta:
    """What a delta file says about itself besides its tensors.

    Args:
        architecture: the base's general.architecture.
        name: the fine-tune's name.
        method: `paper`, or another name of the converter's.
        converter: program and version.
        options: the options that decide the bytes; written as JSON with sorted keys.
        base_name: the base's general.name.
        base: its identity.
        reference: `base`, or the name of the reference file that the delta is against.
        chat_template: the fine-tune's, None for the base's.
        token_ids: token ids of the fine-tune by key (format.TOKEN_ID_KEYS).
        add_bos, add_eos: None for the base's.
        changed_tokens: tokens with another text or type than in the base.
        general: other `general.*` keys, for instance the licence, general.base_model.* and general.sampling.*.
    """

    architecture: str
    name: str
    method: str
    converter: str
    options: Mapping[str, Any]
    base_name: str
    base: BaseIdentity
    reference: str = fmt.REFERENCE_BASE
    chat_template: str | None = None
    token_ids: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    changed_tokens: Sequence[Token] = ()
    general: Mapping[str, GGUFValue] = field(default_factory=dict)


def delta_ratio(specs: Sequence[WeightSpec]) -> float:
    """Bytes of all tensors, padding left out, over the 16-bit size of the weights that they change."""
    return sum(s.n_bytes for s in specs) / (2 * sum(s.n_elements for s in specs))


class DeltaWriter:
    """Writes the delta file `path`; a context manager.

    Entering creates a temporary file beside the target; leaving completes it and renames it, or removes it after an
    exception. The same arguments and data give the same bytes.

    Args:
        path: the target.
        meta: the file's metadata.
        specs: the weights in the order in which they will be written.
        force: replace an existing target.

    Raises:
        OutputExistsError, InputError, DiskFullError, FormatError, ShapeError: before anything is written.

    Example:
        >>> with DeltaWriter("ft.dq.gguf", meta, specs) as writer:    # doctest: +SKIP
        ...     for spec in specs:
        ...         writer.write(compress(spec))
    """

    def __init__(
        self, path: str | os.PathLike[str], meta: DeltaMeta, specs: Sequence[WeightSpec], force: bool = False
    ) -> None:
        self.path = Path(path)
        self._meta = meta
        self._specs = list(specs)
        self._force = force
        _check_specs(self._specs)
        self._tensors = [t for spec in self._specs for t in spec.tensors()]
        self._sha256: list[str] = []
        self._errors: list[tuple[float, float]] = []  # (error_delta, error_weight) of each weight written
        self._file: BinaryIO | None = None
        self._temp = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._header_bytes = len(self._header())
        self._check_target()

    @property
    def n_file_bytes(self) -> int:
        """Bytes that the finished file will have."""
        return self._header_bytes + sum(spec.n_file_bytes for spec in self._specs)

    @property
    def ratio(self) -> float:
        return delta_ratio(self._specs)

    def __enter__(self) -> Self:
        try:
            self._file = self._temp.open("xb")
            self._file.write(self._header())
        except OSError as e:
            self._discard()
            raise_os_error(e, str(self.path))
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as e:
            raise_os_error(e, str(self.path))
        finally:
            self._discard()

    def write(self, data: WeightData) -> None:
        """Writes the next weight.

        Raises:
            ShapeError: an array does not fit the weight's spec.
            NonFiniteError: an array holds NaN or infinity, or overflows its stored type.
            DiskFullError: the disk is full.
        """
        file = self._open_file()
        if len(self._errors) == len(self._specs):
            raise FormatError(f"{self.path.name}: all {len(self._specs)} weights are written already")
        spec = self._specs[len(self._errors)]
        try:
            for tensor, values in zip(spec.tensors(), _arrays_of(spec, data), strict=True):
                raw = _encode(tensor, values)
                self._sha256.append(hashlib.sha256(raw).hexdigest())
                file.write(raw)
                file.write(bytes(padded_bytes(len(raw)) - len(raw)))
        except OSError as e:
            raise_os_error(e, str(self.path))
        self._errors.append((float(data.error_delta), float(data.error_weight)))

    # -- the file --

    def _check_target(self) -> None:
        if self.path.exists() and not self._force:
            raise OutputExistsError(f"{self.path}: exists. Use --force to replace it")
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a directory, expected a file name")
        parent = self.path.parent
        if not parent.is_dir():
            raise InputError(f"{self.path}: there is no directory {parent}")
        free = shutil.disk_usage(parent).free
        if self.n_file_bytes > free:
            raise DiskFullError(f"{self.path}: needs {self.n_file_bytes} bytes, {parent.resolve()} has {free} free")

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("DeltaWriter is used outside its with block")
        return self._file

    def _finish(self) -> None:
        file = self._open_file()
        if len(self._errors) != len(self._specs):
            raise FormatError(f"{self.path.name}: {len(self._errors)} of {len(self._specs)} weights were written")
        file.seek(0)
        file.write(self._header())
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if self.path.exists() and not self._force:
            raise OutputExistsError(f"{self.path}: was made by another program meanwhile. Use --force to replace it")
        self._temp.replace(self.path)
        _sync_directory(self.path.parent)

    def _discard(self) -> None:
        """Closes and removes the temporary file, if it is still there; an interrupt may have come before it had a handle."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed is thrown away here
                self._file.close()
            self._file = None
        self._temp.unlink(missing_ok=True)

    # -- the header --

    def _header(self) -> bytes:
        n_left = len(self._tensors) - len(self._sha256)
        sha256 = self._sha256 + [_NO_SHA256] * n_left
        errors = self._errors + [(0.0, 0.0)] * (len(self._specs) - len(self._errors))
        metadata = [
            *_general_fields(self._meta),
            *self._delta_fields(_NO_SHA256 if n_left else content_hash(self._tensors, sha256)),
            *_tensor_fields(self._tensors, sha256),
            *_weight_fields(self._specs, errors),
            *_base_fields(self._meta),
            *_tokenizer_fields(self._meta),
        ]
        return pack_header(metadata, [(t.name, t.ne, t.type) for t in self._tensors])

    def _delta_fields(self, content: str) -> list[tuple[str, GGUFValue]]:
        options = json.dumps(self._meta.options, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return [
            (fmt.KEY_ADAPTER_TYPE, _string(fmt.ADAPTER_TYPE)),
            (fmt.KEY_VERSION, _u32(fmt.VERSION)),
            (fmt.KEY_METHOD, _string(self._meta.method)),
            (fmt.KEY_CONVERTER, _string(self._meta.converter)),
            (fmt.KEY_OPTIONS, _string(options)),
            (fmt.KEY_RATIO, GGUFValue(self.ratio, ValueType.FLOAT64)),
            (fmt.KEY_CONTENT_HASH, _string(content)),
            (fmt.KEY_REFERENCE, _string(self._meta.reference)),
        ]


def _check_specs(specs: Sequence[WeightSpec]) -> None:
    if not specs:
        raise FormatError("delta: has no weights, expected at least one. Is the fine-tune the base itself?")
    seen = set()
    for spec in specs:
        spec.check()
        if spec.name in seen:
            raise FormatError(f"{spec.name}: occurs twice")
        seen.add(spec.name)
        for tensor in spec.tensors():
            if len(tensor.name.encode("utf-8")) > fmt.MAX_NAME_BYTES:
                raise FormatError(f"{tensor.name}: name is longer than {fmt.MAX_NAME_BYTES} bytes, ggml's limit")


def _sync_directory(directory: Path) -> None:
    """Makes a rename last through a power cut, where the system lets a directory be synced."""
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


# --- metadata ---


def _string(text: str) -> GGUFValue:
    return GGUFValue(text, ValueType.STRING)


def _u32(number: int) -> GGUFValue:
    return GGUFValue(number, ValueType.UINT32)


def _array(items: Sequence[Any], item_type: ValueType) -> GGUFValue:
    return GGUFValue(items, ValueType.ARRAY, item_type)


def _general_fields(meta: DeltaMeta) -> list[tuple[str, GGUFValue]]:
    own = {
        fmt.KEY_GENERAL_TYPE: _string(fmt.GENERAL_TYPE),
        fmt.KEY_ARCHITECTURE: _string(meta.architecture),
        fmt.KEY_ALIGNMENT: _u32(fmt.ALIGNMENT),
        fmt.KEY_NAME: _string(meta.name),
    }
    for key in meta.general:
        if not key.startswith("general.") or key in own:
            raise FormatError(
                f"metadata key '{key}' cannot be carried, expected another general.* key than {', '.join(own)}"
            )
    return [*own.items(), *sorted(meta.general.items())]


def _tensor_fields(tensors: Sequence[TensorSpec], sha256: Sequence[str]) -> list[tuple[str, GGUFValue]]:
    return [
        (fmt.KEY_TENSOR_NAMES, _array([t.name for t in tensors], ValueType.STRING)),
        (fmt.KEY_TENSOR_TYPES, _array([t.declared for t in tensors], ValueType.STRING)),
        (fmt.KEY_TENSOR_NE, _array([n for t in tensors for n in t.logical_ne], ValueType.UINT64)),
        (fmt.KEY_TENSOR_SHA256, _array(sha256, ValueType.STRING)),
    ]


def _weight_fields(specs: Sequence[WeightSpec], errors: Sequence[tuple[float, float]]) -> list[tuple[str, GGUFValue]]:
    return [
        (fmt.KEY_WEIGHT_NAMES, _array([s.name for s in specs], ValueType.STRING)),
        (fmt.KEY_WEIGHT_NE, _array([n for s in specs for n in padded_ne(s.ne)], ValueType.UINT64)),
        (fmt.KEY_WEIGHT_RANK, _array([s.rank for s in specs], ValueType.UINT32)),
        (fmt.KEY_WEIGHT_N_PLANES, _array([s.n_planes for s in specs], ValueType.UINT32)),
        (fmt.KEY_WEIGHT_ERROR_DELTA, _array([e[0] for e in errors], ValueType.FLOAT32)),
        (fmt.KEY_WEIGHT_ERROR_WEIGHT, _array([e[1] for e in errors], ValueType.FLOAT32)),
    ]


def _base_fields(meta: DeltaMeta) -> list[tuple[str, GGUFValue]]:
    return [
        (fmt.KEY_BASE_NAME, _string(meta.base_name)),
        (fmt.KEY_BASE_DIGEST, _string(meta.base.digest)),
        (fmt.KEY_BASE_SAMPLE_TENSORS, _array(meta.base.sample_tensors, ValueType.STRING)),
        (fmt.KEY_BASE_SAMPLES, _array(meta.base.samples.tolist(), ValueType.FLOAT32)),
    ]


def _tokenizer_fields(meta: DeltaMeta) -> list[tuple[str, GGUFValue]]:
    unknown = set(meta.token_ids) - set(fmt.TOKEN_ID_KEYS)
    if unknown:
        raise FormatError(
            f"token id key '{min(unknown)}' cannot be carried, expected one of {', '.join(fmt.TOKEN_ID_KEYS)}"
        )
    fields = []
    if meta.chat_template is not None:
        fields.append((fmt.KEY_CHAT_TEMPLATE, _string(meta.chat_template)))
    fields += [(key, _u32(meta.token_ids[key])) for key in fmt.TOKEN_ID_KEYS if key in meta.token_ids]
    for key, flag in ((fmt.KEY_ADD_BOS, meta.add_bos), (fmt.KEY_ADD_EOS, meta.add_eos)):
        if flag is not None:
            fields.append((key, GGUFValue(flag, ValueType.BOOL)))
    if meta.changed_tokens:
        fields += [
            (fmt.KEY_CHANGED_IDS, _array([t.id for t in meta.changed_tokens], ValueType.UINT32)),
            (fmt.KEY_CHANGED_TEXTS, _array([t.text for t in meta.changed_tokens], ValueType.STRING)),
            (fmt.KEY_CHANGED_TYPES, _array([t.type for t in meta.changed_tokens], ValueType.INT32)),
        ]
    return fields


# --- tensor data ---


def _arrays_of(spec: WeightSpec, data: WeightData) -> list[npt.NDArray[Any]]:
    """The arrays of a weight in file order."""
    parts: list[tuple[str, bool, npt.NDArray[Any] | None]] = [
        (fmt.SUFFIX_DENSE, spec.dense_type is not None, data.dense),
        (fmt.SUFFIX_CSCALE, spec.cscale, data.cscale),
        (fmt.SUFFIX_U, spec.rank > 0, data.u),
        (fmt.SUFFIX_V, spec.rank > 0, data.v),
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


def _encode(tensor: TensorSpec, values: npt.NDArray[Any]) -> bytes | memoryview:
    """A tensor's data bytes in its stored type."""
    shape = tuple(reversed(tensor.ne))
    values = np.asarray(values)
    if values.shape != shape and not _same_but_for_ones(values.shape, shape):
        raise ShapeError(f"{tensor.name}: array has shape {values.shape}, expected {shape}")
    values = values.reshape(shape)
    if tensor.declared == fmt.DQ_SIGN:
        if values.dtype != np.uint8:
            raise ShapeError(f"{tensor.name}: sign bits have type {values.dtype}, expected uint8. Use pack_signs")
        return np.ascontiguousarray(values).data.cast("B")
    values = np.ascontiguousarray(values, dtype=np.float32)
    _check_finite(tensor, values)
    if tensor.type == Type.F16:
        with np.errstate(over="ignore"):
            encoded = values.astype("<f2")
        _check_finite(tensor, encoded)
    elif tensor.type == Type.F32:
        encoded = values.astype("<f4", copy=False)
    else:
        encoded = np.ascontiguousarray(gguf.quants.quantize(values, tensor.type))
    return encoded.data.cast("B")


def _same_but_for_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    return [n for n in a if n != 1] == [n for n in b if n != 1]


def _check_finite(tensor: TensorSpec, values: npt.NDArray[Any]) -> None:
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise NonFiniteError(
            f"{tensor.name}: {n_bad} of {values.size} values are NaN, infinite or too large for {values.dtype}"
        )
