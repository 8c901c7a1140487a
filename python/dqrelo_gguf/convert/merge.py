"""Base and delta back to one plain GGUF, which any llama.cpp runs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.blocks import Blocks, open_blocks, row_slices
from dqrelo_gguf.compress.factors import block_of, type_of
from dqrelo_gguf.errors import BaseMismatchError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType, pack_header
from dqrelo_gguf.file.fingerprint import Comparison, Match
from dqrelo_gguf.file.layout import Type, n_data_bytes, padded_bytes, stripped_ne
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.output import check_target, new_file
from dqrelo_gguf.progress import Phases, Silent

OUT_TYPES = {"f16": Type.F16, "bf16": Type.BF16, "f32": Type.F32, "q8_0": Type.Q8_0}

_FILE_TYPES = {
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
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
# General keys of the delta file that speak of the file and not of the fine-tune.
_OF_THE_DELTA = frozenset({fmt.KEY_GENERAL_TYPE, fmt.KEY_ARCHITECTURE, fmt.KEY_ALIGNMENT})
_INTEGERS = (Type.I8, Type.I16, Type.I32, Type.I64)
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


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    outfile: Path
    n_tensors: int
    n_changed: int
    n_file_bytes: int
    comparison: Comparison


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Args:
        out_type: of the matrices, a key of OUT_TYPES; vectors are F32.
        allow_other_base: accept another quantisation of the delta's base.
        verify: check the delta's digests first.
        force: replace an existing file.
        n_threads: None for all cores.
    """

    out_type: str = "f16"
    allow_other_base: bool = False
    verify: bool = True
    force: bool = False
    n_threads: int | None = None


def merge(
    base_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str],
    outfile: str | os.PathLike[str],
    options: MergeOptions | None = None,
    phases: Phases = Silent,
) -> MergeResult:
    """Writes W_base + D_hat of every weight as a plain GGUF with the fine-tune's name, template and tokens.

    Args:
        base_path: the base, whole or split.
        delta_path: the delta.
        outfile: the merged model.
        options: how.
        phases: shows the progress.

    Raises:
        BaseMismatchError: the delta was made for another base.
        FormatError: the delta is damaged.
        OutputExistsError, DiskFullError: the output cannot be written; nothing is left behind.
    """
    out = Path(outfile)
    options = options or MergeOptions()
    check_target(out, options.force)  # at once, not after the work
    wanted = OUT_TYPES[options.out_type]
    base, delta = GgufModel(base_path), DeltaReader(delta_path)
    comparison = _check_base(base, delta, options.allow_other_base)
    if options.verify:
        delta.verify()
    types = {name: _out_type(base, name, wanted) for name in base.shapes}
    header = pack_header(_metadata(base, delta_path, wanted), [(n, base.shapes[n], t) for n, t in types.items()])
    n_file_bytes = len(header) + sum(padded_bytes(n_data_bytes(t, base.shapes[n])) for n, t in types.items())
    check_target(out, options.force, n_file_bytes)
    changed = {w.name for w in delta.weights}
    n_params = sum(prod(ne) for ne in base.shapes.values())
    with (
        open_blocks(options.n_threads) as blocks,
        new_file(out, options.force) as file,
        phases("merging", n_params) as progress,
    ):
        file.write(header)
        for name, t in types.items():
            values = _merged(name, base, delta if name in changed else None, blocks)
            _write_tensor(file, values, t)
            progress.step(values.size, name)
    return MergeResult(out, len(types), len(changed), n_file_bytes, comparison)


def _check_base(base: GgufModel, delta: DeltaReader, allow_other_base: bool) -> Comparison:
    comparison = delta.check_base(base.file)
    if comparison.match is not Match.SAME_FILE and not allow_other_base:
        raise BaseMismatchError(
            f"{delta.path.name}: was made for another file of the model '{delta.base_name}' than {base.label} "
            f"(correlation {comparison.correlation:.4f}). Use --allow-other-base to merge with this one"
        )
    return comparison


def _out_type(base: GgufModel, name: str, wanted: Type) -> Type:
    """The type of a tensor in the merged file: as llama.cpp's own conversion would choose it."""
    ne, stored = stripped_ne(base.shapes[name]), type_of(base.type_of(name))
    if stored in _INTEGERS:
        return stored
    if len(ne) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight") or _F32_NAMES.fullmatch(name):
        return Type.F32
    return wanted if ne[0] % block_of(wanted.name) == 0 else Type.F16


def _merged(name: str, base: GgufModel, delta: DeltaReader | None, blocks: Blocks) -> npt.NDArray[np.float32]:
    values = base.load(name, blocks)
    if delta is not None:
        values += delta.reconstruct(name).reshape(values.shape)
    return values


def _write_tensor(file: BinaryIO, values: npt.NDArray[np.float32], t: Type) -> None:
    """A tensor in its type, a block of rows at a time, padded."""
    rows = values.reshape(-1, values.shape[-1])
    n_bytes = 0
    for part in row_slices(*rows.shape):
        encoded = _encode(rows[part], t)
        file.write(encoded)
        n_bytes += len(encoded)
    file.write(bytes(padded_bytes(n_bytes) - n_bytes))


def _encode(rows: npt.NDArray[np.float32], t: Type) -> bytes:
    if t.name.startswith("I"):
        return rows.astype(f"<i{int(t.name[1:]) // 8}").tobytes()
    return np.ascontiguousarray(gguf.quants.quantize(rows, t)).tobytes()


def _metadata(base: GgufModel, delta_path: str | os.PathLike[str], t: Type) -> list[tuple[str, GGUFValue]]:
    """The base's metadata, overlaid with the fine-tune's name, template, tokens and other general keys."""
    fields = {key: _field(base.file.files[0], key) for key in base.field_names() if key not in _DROPPED}
    delta = GGUFFile(delta_path)
    delta_keys = delta.keys()
    for key in delta_keys:
        if key.startswith(("general.", "tokenizer.")) and key not in _OF_THE_DELTA:
            fields[key] = _field(delta, key)
    _rename_tokens(fields, delta)
    fields["general.file_type"] = GGUFValue(int(_FILE_TYPES[t]), ValueType.UINT32)
    fields["general.quantization_version"] = GGUFValue(gguf.GGML_QUANT_VERSION, ValueType.UINT32)
    fields[fmt.KEY_ALIGNMENT] = GGUFValue(fmt.ALIGNMENT, ValueType.UINT32)
    return list(fields.items())


def _rename_tokens(fields: dict[str, GGUFValue], delta: GGUFFile) -> None:
    """Gives the tokens that the fine-tune changed their texts and types."""
    for key, changed in (
        (fmt.MODEL_TOKENS, fmt.KEY_CHANGED_TEXTS),
        ("tokenizer.ggml.token_type", fmt.KEY_CHANGED_TYPES),
    ):
        news = dict(zip(delta.value(fmt.KEY_CHANGED_IDS, []), delta.value(changed, []), strict=True))
        if news and key in fields:
            values = [news.get(i, value) for i, value in enumerate(fields[key].value)]
            fields[key] = replace(fields[key], value=values)


def _field(file: GGUFFile, key: str) -> GGUFValue:
    types = file.value_type(key)
    assert types is not None
    return GGUFValue(file.value(key), *types)
