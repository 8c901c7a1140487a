"""A plain GGUF model: the base's metadata, other values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.blocks import row_slices
from dqrelo_gguf.compress.factors import block_of, type_of
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType, pack_header
from dqrelo_gguf.file.layout import Type, n_data_bytes, padded_bytes, stripped_ne
from dqrelo_gguf.file.values import INTEGER_TYPES
from dqrelo_gguf.model.base import GgufModel

_FILE_TYPES = {
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
# A plain model has GGUF's own alignment: llama-quantize writes files that nothing can load of one that says another.
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
# Keys of the base that do not hold for the merged file.
_DROPPED = frozenset(
    {
        fmt.KEY_ALIGNMENT,
        "general.file_type",
        "general.quantization_version",
        "split.no",
        "split.count",
        "split.tensors.count",
    }
)
# Matrices that llama.cpp reads in F32 only: those that its own conversion never stores in another type.
_F32_KEYS = (
    "FFN_GATE_INP",
    "FFN_GATE_INP_SHEXP",
    "POS_EMBD",
    "TOKEN_TYPES",
    "SSM_CONV1D",
    "SHORTCONV_CONV",
    "TIME_MIX_FIRST",
    "TIME_MIX_W1",
    "TIME_MIX_W2",
    "TIME_MIX_DECAY_W1",
    "TIME_MIX_DECAY_W2",
    "TIME_MIX_LERP_FUSED",
    "POSNET_NORM1",
    "POSNET_NORM2",
    "SSM_CONV1D_Q",
    "SSM_CONV1D_K",
    "SSM_CONV1D_V",
    "INDEXER_PROJ",
)
_F32_NAMES = re.compile(
    "|".join(
        re.escape(gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[key]]).replace(re.escape("{bid}"), r"\d+") + r"\.weight"
        for key in _F32_KEYS
    )
)


def write_plain(path: Path, base: GgufModel, values_of: Callable[[str], npt.NDArray[np.float32]], wanted: Type) -> None:
    """Writes a model with the base's tensors and metadata, and values of its own.

    Args:
        path: the file; there is none yet.
        base: which tensors, and all metadata.
        values_of: a tensor's values in its numpy shape, by name.
        wanted: the type of matrices.
    """
    types = {name: out_type(base, name, wanted) for name in base.shapes}
    with path.open("xb") as file:
        file.write(
            pack_header(list(fields_of(base, wanted).items()), [(n, base.shapes[n], t) for n, t in types.items()])
        )
        for name, t in types.items():
            write_tensor(file, values_of(name), t)


def plain_data_bytes(base: GgufModel, wanted: Type) -> int:
    """Bytes of the tensors of a model with the base's tensors, padding included."""
    return sum(
        padded_bytes(n_data_bytes(out_type(base, name, wanted), ne), _ALIGNMENT) for name, ne in base.shapes.items()
    )


def fields_of(base: GgufModel, wanted: Type) -> dict[str, GGUFValue]:
    """The base's metadata, as far as it holds for another file of its tensors."""
    fields = {key: field_of(base.file.files[0], key) for key in base.field_names() if key not in _DROPPED}
    fields["general.file_type"] = GGUFValue(int(_FILE_TYPES[wanted]), ValueType.UINT32)
    fields["general.quantization_version"] = GGUFValue(gguf.GGML_QUANT_VERSION, ValueType.UINT32)
    return fields


def out_type(base: GgufModel, name: str, wanted: Type) -> Type:
    """The type of a tensor in the merged file: as llama.cpp's own conversion would choose it."""
    ne, stored = stripped_ne(base.shapes[name]), type_of(base.type_of(name))
    if stored in INTEGER_TYPES:
        return stored
    if len(ne) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight") or _F32_NAMES.fullmatch(name):
        return Type.F32
    return wanted if ne[0] % block_of(wanted.name) == 0 else Type.F16


def write_tensor(file: BinaryIO, values: npt.NDArray[np.float32], t: Type) -> None:
    """A tensor in its type, a block of rows at a time, padded."""
    rows = values.reshape(-1, values.shape[-1])
    n_bytes = 0
    for part in row_slices(*rows.shape):
        encoded = _encode(rows[part], t)
        file.write(encoded)
        n_bytes += len(encoded)
    file.write(bytes(padded_bytes(n_bytes, _ALIGNMENT) - n_bytes))


def _encode(rows: npt.NDArray[np.float32], t: Type) -> bytes:
    if t.name.startswith("I"):
        return rows.astype(f"<i{int(t.name[1:]) // 8}").tobytes()
    return np.ascontiguousarray(gguf.quants.quantize(rows, t)).tobytes()


def field_of(file: GGUFFile, key: str) -> GGUFValue:
    """A metadata value with its types."""
    value = file.field(key)
    assert value is not None
    return value
