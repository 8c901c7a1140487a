"""Base and delta back to one plain GGUF, which any llama.cpp runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.convert.plain_model import field_of, fields_of, out_type, plain_data_bytes, write_tensor
from dqrelo_gguf.errors import BaseMismatchError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType, pack_header
from dqrelo_gguf.file.fingerprint import Comparison, Match
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.output import check_outputs, check_target, new_file
from dqrelo_gguf.progress import Phases, Silent

OUT_TYPES = {"f16": Type.F16, "bf16": Type.BF16, "f32": Type.F32, "q8_0": Type.Q8_0}

# General keys of the delta file that speak of the file and not of the fine-tune.
_OF_THE_DELTA = frozenset({fmt.KEY_GENERAL_TYPE, fmt.KEY_ARCHITECTURE, fmt.KEY_ALIGNMENT})

_MORE_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


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
    check_outputs(
        [out], [*files_of(base_path), Path(delta_path)], options.force
    )  # It fails at once, not after the work.
    wanted = OUT_TYPES[options.out_type]
    base, delta = GgufModel(base_path), DeltaReader(delta_path)
    comparison = _check_base(base, delta, options.allow_other_base)
    if options.verify:
        delta.verify()
    types = {name: out_type(base, name, wanted) for name in base.shapes}
    header = pack_header(_metadata(base, delta_path, wanted), [(n, base.shapes[n], t) for n, t in types.items()])
    n_file_bytes = len(header) + plain_data_bytes(base, wanted)
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
            write_tensor(file, values, t)
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


def _merged(name: str, base: GgufModel, delta: DeltaReader | None, blocks: Blocks) -> npt.NDArray[np.float32]:
    values = base.load(name, blocks)
    if delta is not None:
        values += delta.reconstruct(name).reshape(values.shape)
    return values


def _metadata(base: GgufModel, delta_path: str | os.PathLike[str], t: Type) -> list[tuple[str, GGUFValue]]:
    """The base's metadata, overlaid with the fine-tune's name, template, tokens and other general keys."""
    fields = fields_of(base, t)
    delta = GGUFFile(delta_path)
    delta_keys = delta.keys()
    if fmt.KEY_CHAT_TEMPLATE in delta_keys or fmt.KEY_TOOL_USE in delta_keys:
        for key in [k for k in fields if k.startswith(fmt.KEY_CHAT_TEMPLATE)]:
            del fields[key]  # A template of the base beside the fine-tune's would be chosen for requests with tools.
    for key in delta_keys:
        if key.startswith(("general.", "tokenizer.")) and key not in _OF_THE_DELTA:
            fields[key] = field_of(delta, key)
    _list_templates(fields)
    _name_end_tokens(fields, delta)
    _rename_tokens(fields, delta)
    return list(fields.items())


def _list_templates(fields: dict[str, GGUFValue]) -> None:
    """Lists the named templates, of whichever side they are."""
    prefix = fmt.PREFIX_CHAT_TEMPLATE
    names = sorted(key.removeprefix(prefix) for key in fields if key.startswith(prefix))
    if names:
        fields[fmt.KEY_CHAT_TEMPLATES] = GGUFValue(names, ValueType.ARRAY, ValueType.STRING)


def _name_end_tokens(fields: dict[str, GGUFValue], delta: GGUFFile) -> None:
    """Gives the fine-tune's end tokens the keys that a plain model has for them: EOS, EOT and EOM, one each."""
    ids = delta.value(fmt.KEY_END_TOKENS, [])
    if not ids:
        return
    eos = fields.get(fmt.EOS_ID_KEY)
    if eos is None or eos.value not in ids:
        fields[fmt.EOS_ID_KEY] = GGUFValue(ids[0], ValueType.UINT32)
    left = [i for i in ids if i != fields[fmt.EOS_ID_KEY].value]
    for key in _MORE_END_KEYS:
        fields.pop(key, None)
    fields.update({key: GGUFValue(i, ValueType.UINT32) for key, i in zip(_MORE_END_KEYS, left, strict=False)})


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
