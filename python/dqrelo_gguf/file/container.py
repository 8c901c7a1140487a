"""GGUF itself: packs a header, and parses one with every length checked against the file's size.

gguf-py's GGUFReader trusts the file (a bad length ends in an IndexError or in gigabytes of memory) and builds a Python
object per vocabulary entry; this one refuses a malformed file in one line and decodes an array when it is asked for.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import FormatError, shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.layout import n_data_bytes, ne_text, padded_bytes, type_name
from dqrelo_gguf.file.open_file import OpenFile

ValueType: TypeAlias = gguf.GGUFValueType
GGUFValue: TypeAlias = gguf.GGUFValue

MAGIC = b"GGUF"
VERSION = 3
_MIN_VERSION = 2  # Version 2 differs from 3 in nothing that we read.
_MAX_DIMS = 4
_MAX_ELEMENTS = 1 << 62  # Twice this still fits ggml's int64_t.

_SCALARS = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}


def type_text(value_type: ValueType, item_type: ValueType | None) -> str:
    """A value's type as messages name it: `UINT32`, `[STRING]`."""
    return f"[{item_type.name}]" if item_type is not None else str(value_type.name)


# --- packing ---


def pack_string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def pack_value(value: GGUFValue) -> bytes:
    """A metadata value with its type in front, as it follows its key."""
    return struct.pack("<I", value.type) + _pack_bare(value.value, value.type, value.sub_type)


def _pack_bare(value: Any, value_type: ValueType, sub_type: ValueType | None) -> bytes:
    if value_type == ValueType.STRING:
        return pack_string(value)
    if value_type != ValueType.ARRAY:
        return struct.pack(_SCALARS[value_type], value)
    items = list(value)
    if sub_type is None and not items:
        raise ValueError("an empty array needs the type of its items")
    item_type = sub_type if sub_type is not None else ValueType.get_type(items[0])
    packed = b"".join(_pack_bare(item, item_type, None) for item in items)
    return struct.pack("<IQ", item_type, len(items)) + packed


def pack_header(
    metadata: Sequence[tuple[str, GGUFValue]], tensors: Sequence[tuple[str, Sequence[int], gguf.GGMLQuantizationType]]
) -> bytes:
    """A whole GGUF header, padded: the data section begins where it ends.

    Args:
        metadata: keys and values in file order. Tensors begin at multiples of its general.alignment, or of GGUF's default of 32 bytes.
        tensors: (name, ne, type) in file order; offsets follow from the sizes.
    """
    aligned_to = next((int(v.value) for key, v in metadata if key == fmt.KEY_ALIGNMENT), gguf.GGUF_DEFAULT_ALIGNMENT)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata:
        parts += [pack_string(key), pack_value(value)]
    offset_bytes = 0
    for name, ne, t in tensors:
        parts.append(pack_string(name))
        parts.append(struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, t, offset_bytes))
        offset_bytes += padded_bytes(n_data_bytes(t, ne), aligned_to)
    header = b"".join(parts)
    return header.ljust(padded_bytes(len(header), aligned_to), b"\0")


# --- parsing ---


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header declares it; it lies inside the file."""

    name: str
    ne: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int  # bytes after the start of the data section
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return int(prod(self.ne))


@dataclass(frozen=True)
class _Field:
    """A metadata value that is not decoded yet."""

    type: ValueType
    item_type: ValueType | None  # None where the value is no array.
    n_items: int  # number of the array's items
    offset: int  # The value, or the first item, begins at this byte of the file.


class GGUFFile:
    """One GGUF file, open. Everything in the header is checked when it is opened; the data is not touched.

    What is asked for later raises an InputError where the file has shrunk or cannot be read.

    Args:
        path: the file.

    Raises:
        FormatError: the file is not a sound GGUF file.
        InputError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if sys.byteorder != "little":
            self.fail("is little-endian, as all GGUF files here; this host is big-endian, which is not supported")
        self._file = OpenFile(self.path)
        self.n_file_bytes = self._file.n_bytes
        self._at = 0  # parsing position, byte in the file
        self.version, n_tensors, n_fields = self._parse_start()
        self._fields = self._parse_fields(n_fields)
        self.alignment = self._parse_alignment()
        raw = self._parse_tensor_infos(n_tensors)
        self.header_end = self._at
        self.data_start = padded_bytes(self._at, self.alignment)
        self.tensors: dict[str, TensorInfo] = self._check_tensors(raw)

    def fail(self, message: str) -> NoReturn:
        """Raises a FormatError about this file."""
        raise FormatError(f"{self.path}: {message}")

    # -- access --

    def keys(self) -> list[str]:
        return list(self._fields)

    def value_type(self, key: str) -> tuple[ValueType, ValueType | None] | None:
        """A key's type, and its items' type for an array; None if the key is absent."""
        field = self._fields.get(key)
        return None if field is None else (field.type, field.item_type)

    def field(self, key: str) -> GGUFValue | None:
        """A key's value with its types, decoded; None if the key is absent."""
        types = self.value_type(key)
        return None if types is None else GGUFValue(self.value(key), *types)

    def value(self, key: str, default: Any = None) -> Any:
        """A key's value, decoded; an array becomes a list."""
        field = self._fields.get(key)
        if field is None:
            return default
        self._at = field.offset
        if field.item_type is None:
            return self._string(key) if field.type == ValueType.STRING else self._scalar(field.type, key)
        if field.item_type == ValueType.STRING:
            where = f"metadata key '{shown(key)}'"
            return [self._string(where) for _ in range(field.n_items)]
        dtype = np.dtype(_SCALARS[field.item_type])
        return self._file.array(field.offset, field.n_items * dtype.itemsize).view(dtype).tolist()

    def stored(self, key: str) -> npt.NDArray[np.uint8]:
        """Bytes of a key's number, or of the numbers of its array."""
        field = self._fields[key]
        item_bytes = struct.calcsize(_SCALARS[field.item_type or field.type])
        n_items = field.n_items if field.item_type is not None else 1
        return self._file.array(field.offset, n_items * item_bytes)

    def raw(self, tensor: TensorInfo, start: int = 0, n_bytes: int | None = None) -> npt.NDArray[np.uint8]:
        """Bytes of a tensor's data, read when they are asked for."""
        n = tensor.n_bytes - start if n_bytes is None else n_bytes
        return self._file.array(self.data_start + tensor.offset + start, n)

    def bytes_at(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Bytes of the file between two places."""
        return self._file.array(begin, end - begin)

    # -- header --

    def _parse_start(self) -> tuple[int, int, int]:
        head = self._file.read(0, min(len(MAGIC), self.n_file_bytes))
        if head != MAGIC:
            self.fail(f"is not a GGUF file, it begins with {head!r}, expected {MAGIC!r}")
        self._at = len(MAGIC)
        version, n_tensors, n_fields = self._unpack("<IQQ", "the counts")
        if version & 0xFFFF == 0 and version != 0:
            self.fail("is a big-endian GGUF file, expected little-endian")
        if not _MIN_VERSION <= version <= VERSION:
            self.fail(f"GGUF version {version}, expected {VERSION}")
        # The smallest entries. A tensor: name length, dimension count, type, offset. A field: key length, type, a byte.
        for what, n, least_bytes in (("tensors", n_tensors, 24), ("metadata keys", n_fields, 13)):
            if n * least_bytes > self.n_file_bytes:
                self.fail(f"declares {n} {what}, more than its {self.n_file_bytes} bytes can hold. Truncated download?")
        return version, n_tensors, n_fields

    def _parse_fields(self, n_fields: int) -> dict[str, _Field]:
        fields: dict[str, _Field] = {}
        for i in range(n_fields):
            key = self._string(f"metadata key {i}")
            if key in fields:
                self.fail(f"metadata key '{shown(key)}' occurs twice")
            value_type = self._value_type(key)
            if value_type == ValueType.ARRAY:
                item_type = self._value_type(key)
                (n_items,) = self._unpack("<Q", f"the length of '{shown(key)}'")
                fields[key] = _Field(value_type, item_type, n_items, self._at)
                self._skip_items(key, item_type, n_items)
                continue
            fields[key] = _Field(value_type, None, 0, self._at)
            if value_type == ValueType.STRING:
                self._string(
                    f"metadata key '{shown(key)}'"
                )  # A value must be text, but a vocabulary's pieces need not be.
            else:
                self._skip_items(key, value_type, 1)
        return fields

    def _skip_items(self, key: str, item_type: ValueType, n_items: int) -> None:
        if item_type == ValueType.ARRAY:
            self.fail(f"metadata key '{shown(key)}' is an array of arrays, which GGUF has no use for")
        item_bytes = 8 if item_type == ValueType.STRING else struct.calcsize(_SCALARS[item_type])
        if n_items * item_bytes > self.n_file_bytes - self._at:
            self.fail(
                f"metadata key '{shown(key)}' has {n_items} items, but only {self.n_file_bytes - self._at} bytes are left. "
                "Truncated download?"
            )
        if item_type != ValueType.STRING:
            self._at += n_items * item_bytes
            return
        unpack, n_file_bytes, at = struct.Struct("<Q").unpack_from, self.n_file_bytes, self._at
        start, data = at, b""
        for _ in range(n_items):  # a vocabulary: kept tight
            if at + 8 > n_file_bytes:
                break
            if at + 8 > start + len(data):
                start, data = at, self._file.window(at)
            at += 8 + unpack(data, at - start)[0]
        else:
            if at <= n_file_bytes:
                self._at = at
                return
        self.fail(
            f"a string of metadata key '{shown(key)}' ends behind the file's {n_file_bytes} bytes. Truncated download?"
        )

    def _parse_alignment(self) -> int:
        field = self._fields.get(fmt.KEY_ALIGNMENT)
        if field is None:
            return int(gguf.GGUF_DEFAULT_ALIGNMENT)
        at = self._at
        alignment = self.value(fmt.KEY_ALIGNMENT)
        self._at = at
        if field.type != ValueType.UINT32 or alignment == 0 or alignment & (alignment - 1):
            self.fail(f"{fmt.KEY_ALIGNMENT} is {alignment} ({field.type.name}), expected a power of two (UINT32)")
        return int(alignment)

    def _parse_tensor_infos(self, n_tensors: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        """(name, ne, type id, offset) of each tensor."""
        infos = []
        for i in range(n_tensors):
            name = self._string(f"the name of tensor {i}")
            (n_dims,) = self._unpack("<I", f"the shape of '{shown(name)}'")
            if n_dims > _MAX_DIMS:
                self.fail(f"tensor '{shown(name)}' has {n_dims} dimensions, expected at most {_MAX_DIMS}")
            *ne, type_id, offset = self._unpack(f"<{n_dims}QIQ", f"the shape of '{shown(name)}'")
            infos.append((name, tuple(ne) or (1,), type_id, offset))
        return infos

    def _check_tensors(self, infos: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for name, ne, type_id, offset in infos:
            if name in tensors:
                self.fail(f"tensor '{shown(name)}' occurs twice")
            try:
                t = gguf.GGMLQuantizationType(type_id)
            except ValueError:
                self.fail(
                    f"tensor '{shown(name)}' has the unknown type id {type_id}. Made by a newer or a forked llama.cpp?"
                )
            if min(ne) < 1 or prod(ne) > _MAX_ELEMENTS:
                self.fail(f"tensor '{shown(name)}' has the impossible shape {ne_text(ne)}")
            block = gguf.GGML_QUANT_SIZES[t][0]
            if ne[0] % block != 0:
                self.fail(
                    f"tensor '{shown(name)}' has rows of {ne[0]}, expected a multiple of {block} for type {type_name(t)}"
                )
            if offset % self.alignment != 0:
                self.fail(
                    f"tensor '{shown(name)}' begins at byte {offset} of the data, expected a multiple of {self.alignment}"
                )
            info = TensorInfo(name, ne, t, offset, n_data_bytes(t, ne))
            end = self.data_start + offset + info.n_bytes
            if end > self.n_file_bytes:
                self.fail(
                    f"tensor '{shown(name)}' ends at byte {end}, file has {self.n_file_bytes} bytes. Truncated download?"
                )
            tensors[name] = info
        return tensors

    # -- primitives: each checks that what it reads lies inside the file --

    def _unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        n = struct.calcsize(layout)
        if self._at + n > self.n_file_bytes:
            self.fail(f"ends at byte {self.n_file_bytes}, inside {what}. Truncated download?")
        values = struct.unpack(layout, self._file.read(self._at, n))
        self._at += n
        return values

    def _scalar(self, value_type: ValueType, what: str) -> Any:
        return self._unpack(_SCALARS[value_type], what)[0]

    def _value_type(self, key: str) -> ValueType:
        (type_id,) = self._unpack("<I", f"the type of '{shown(key)}'")
        try:
            return ValueType(type_id)
        except ValueError:
            self.fail(f"metadata key '{shown(key)}' has the unknown value type {type_id}")

    def _string(self, what: str) -> str:
        (n,) = self._unpack("<Q", what)
        if n > self.n_file_bytes - self._at:
            self.fail(
                f"{what}: a string of {n} bytes ends behind the file's {self.n_file_bytes} bytes. Truncated download?"
            )
        raw = self._file.read(self._at, n)
        self._at += n
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what}: is not UTF-8")
