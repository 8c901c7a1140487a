"""Base and deltas back to one plain GGUF, which any llama.cpp runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.convert.plain_model import field_of, fields_of, out_type, plain_data_bytes, write_tensor
from dqrelo_gguf.errors import BaseMismatchError, InputError
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
        scales: what each delta is multiplied by; none are 1 for each.
    """

    out_type: str = "f16"
    allow_other_base: bool = False
    verify: bool = True
    force: bool = False
    n_threads: int | None = None
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Part:
    """A delta of the merge, the weights that it changes, its scale, and how the base compares with its own."""

    delta: DeltaReader
    names: frozenset[str]
    scale: float
    comparison: Comparison


def merge(
    base_path: str | os.PathLike[str],
    delta_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    outfile: str | os.PathLike[str],
    options: MergeOptions | None = None,
    phases: Phases = Silent,
) -> MergeResult:
    """Writes W_base + D_hat of every weight as a plain GGUF with the fine-tune's name, template and tokens.

    Args:
        base_path: the base, whole or split.
        delta_path: the delta, or several: W_base + scale_0 * D_hat_0 + scale_1 * D_hat_1 + ... with the first one's template and tokens.
        outfile: the merged model.
        options: how.
        phases: shows the progress.

    Raises:
        BaseMismatchError: a delta was made for another base.
        FormatError: a delta is damaged.
        InputError: the scales are not one for each delta, or not finite.
        OutputExistsError, DiskFullError: the output cannot be written; nothing is left behind.
    """
    out = Path(outfile)
    options = options or MergeOptions()
    paths = [Path(delta_path)] if isinstance(delta_path, (str, os.PathLike)) else [Path(path) for path in delta_path]
    scales = _scales_of(options, len(paths))
    check_outputs([out], [*files_of(base_path), *paths], options.force)  # It fails at once, not after the work.
    wanted = OUT_TYPES[options.out_type]
    base = GgufModel(base_path)
    parts = [_open_part(base, path, scale, options) for path, scale in zip(paths, scales, strict=True)]
    types = {name: out_type(base, name, wanted) for name in base.shapes}
    header = pack_header(_metadata(base, parts, wanted), [(n, base.shapes[n], t) for n, t in types.items()])
    n_file_bytes = len(header) + plain_data_bytes(base, wanted)
    check_target(out, options.force, n_file_bytes)
    changed = frozenset().union(*(part.names for part in parts))
    n_params = sum(prod(ne) for ne in base.shapes.values())
    with (
        open_blocks(options.n_threads) as blocks,
        new_file(out, options.force) as file,
        phases("merging", n_params) as progress,
    ):
        file.write(header)
        for name, t in types.items():
            values = _merged(name, base, parts, blocks)
            write_tensor(file, values, t)
            progress.step(values.size, name)
    return MergeResult(out, len(types), len(changed), n_file_bytes, parts[0].comparison)


def _scales_of(options: MergeOptions, n_deltas: int) -> tuple[float, ...]:
    scales = options.scales or (1.0,) * n_deltas
    if len(scales) != n_deltas:
        raise InputError(f"--scales: got {len(scales)} for {n_deltas} deltas, expected one for each")
    for scale in scales:
        if not abs(scale) <= np.finfo(np.float32).max:
            raise InputError(f"--scales: got {scale}, expected finite numbers")
    return scales


def _open_part(base: GgufModel, path: Path, scale: float, options: MergeOptions) -> _Part:
    delta = DeltaReader(path)
    comparison = _check_base(base, delta, options.allow_other_base)
    if options.verify:
        delta.verify()
    return _Part(delta, frozenset(w.name for w in delta.weights), scale, comparison)


def _check_base(base: GgufModel, delta: DeltaReader, allow_other_base: bool) -> Comparison:
    comparison = delta.check_base(base.file)
    if comparison.match is not Match.SAME_FILE and not allow_other_base:
        raise BaseMismatchError(
            f"{delta.path.name}: was made for another file of the model '{delta.base_name}' than {base.label} "
            f"(correlation {comparison.correlation:.4f}). Use --allow-other-base to merge with this one"
        )
    return comparison


def _merged(name: str, base: GgufModel, parts: Sequence[_Part], blocks: Blocks) -> npt.NDArray[np.float32]:
    values = base.load(name, blocks)
    for part in parts:
        if name in part.names:
            change = part.delta.reconstruct(name).reshape(values.shape)
            values += change if part.scale == 1.0 else np.float32(part.scale) * change
    return values


def _metadata(base: GgufModel, parts: Sequence[_Part], t: Type) -> list[tuple[str, GGUFValue]]:
    """The base's metadata, overlaid with the first fine-tune's template, tokens and other general keys, and with the name."""
    fields = fields_of(base, t)
    delta = GGUFFile(parts[0].delta.path)
    delta_keys = delta.keys()
    if fmt.KEY_CHAT_TEMPLATE in delta_keys or fmt.KEY_TOOL_USE in delta_keys:
        for key in [k for k in fields if k.startswith(fmt.KEY_CHAT_TEMPLATE)]:
            del fields[key]  # A template of the base beside the fine-tune's would be chosen for requests with tools.
    for key in delta_keys:
        if key.startswith(("general.", "tokenizer.")) and key not in _OF_THE_DELTA:
            fields[key] = field_of(delta, key)
    if len(parts) > 1:
        name = " + ".join(f"{part.scale:g} {part.delta.name}" for part in parts)
        fields[fmt.KEY_NAME] = GGUFValue(name, ValueType.STRING)
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
