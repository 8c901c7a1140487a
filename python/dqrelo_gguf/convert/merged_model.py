"""Base and deltas as one model, whose weights are added up when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.plain_model import field_of, fields_of
from dqrelo_gguf.errors import BaseMismatchError, InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import Comparison, Match
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import EndTokens, GgufModel

# General keys of the delta file that speak of the file and not of the fine-tune.
_OF_THE_DELTA = frozenset({fmt.KEY_GENERAL_TYPE, fmt.KEY_ARCHITECTURE, fmt.KEY_ALIGNMENT})

_MORE_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@dataclass(frozen=True)
class Blend:
    """Deltas that are added up.

    Args:
        deltas: the files; template and tokens are the first one's.
        scales: what each is multiplied by; none are 1 for each.
        allow_other_base: accept another quantisation of a delta's base.
        verify: check the deltas' digests first.
    """

    deltas: tuple[Path, ...]
    scales: tuple[float, ...] = ()
    allow_other_base: bool = False
    verify: bool = True


@dataclass(frozen=True)
class _Part:
    """A delta, the weights that it changes, its scale, and how the base compares with its own."""

    delta: DeltaReader
    names: frozenset[str]
    scale: float
    comparison: Comparison


def ratio_together(deltas: Sequence[Path]) -> Fraction:
    """The ratio of one delta of as many bytes as these have together, to the 16-bit size of all weights that they change; 1 at most."""
    readers = [DeltaReader(path) for path in deltas]
    changed = {w.name: prod(w.ne) for reader in readers for w in reader.weights}
    return min(Fraction(sum(reader.n_bytes for reader in readers), 2 * sum(changed.values())), Fraction(1))


class MergedModel:
    """W_base + scale_0 * D_hat_0 + scale_1 * D_hat_1 + ... of every weight.

    Args:
        base: the base.
        blend: the deltas.

    Raises:
        BaseMismatchError: a delta was made for another base.
        FormatError: a delta is damaged.
        InputError: the scales are not one for each delta, or not finite.
    """

    def __init__(self, base: GgufModel, blend: Blend) -> None:
        scales = _scales_of(blend)
        self._base = base
        self._parts = [_open_part(base, path, scale, blend) for path, scale in zip(blend.deltas, scales, strict=True)]
        self.label = " + ".join(path.name for path in blend.deltas)
        self.architecture = base.architecture
        self.changed = frozenset().union(*(part.names for part in self._parts))

    @property
    def comparison(self) -> Comparison:
        """How the base compares with that of the first delta."""
        return self._parts[0].comparison

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def end_tokens(self) -> EndTokens | None:
        """All that end the first fine-tune's answers, where its delta lists them."""
        ids = self._first.value(fmt.KEY_END_TOKENS, [])
        return EndTokens(tuple(ids), is_list=True) if ids else None

    @property
    def name(self) -> str:
        if len(self._parts) == 1:
            return self._parts[0].delta.name
        return " + ".join(f"{part.scale:g} {part.delta.name}" for part in self._parts)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._base.shapes

    def field_names(self) -> list[str]:
        return list(self._fields)

    def field(self, key: str) -> GGUFValue | None:
        return self._fields.get(key)

    def load(self, name: str, blocks: Blocks) -> npt.NDArray[np.float32]:
        """A weight's values; a new array."""
        values = self._base.load(name, blocks)
        for part in self._parts:
            if name in part.names:
                change = part.delta.reconstruct(name).reshape(values.shape)
                values += change if part.scale == 1.0 else np.float32(part.scale) * change
        return values

    def metadata(self, wanted: Type) -> dict[str, GGUFValue]:
        """The base's metadata, overlaid with the first fine-tune's template, tokens and other general keys, and with the name.

        Args:
            wanted: the type of the file's matrices.
        """
        fields, delta = fields_of(self._base, wanted), self._first
        delta_keys = delta.keys()
        if fmt.KEY_CHAT_TEMPLATE in delta_keys or fmt.KEY_TOOL_USE in delta_keys:
            for key in [k for k in fields if k.startswith(fmt.KEY_CHAT_TEMPLATE)]:
                del fields[
                    key
                ]  # A template of the base beside the fine-tune's would be chosen for requests with tools.
        for key in delta_keys:
            if key.startswith(("general.", "tokenizer.")) and key not in _OF_THE_DELTA:
                fields[key] = field_of(delta, key)
        fields[fmt.KEY_NAME] = GGUFValue(self.name, ValueType.STRING)
        _list_templates(fields)
        _name_end_tokens(fields, delta)
        _rename_tokens(fields, delta)
        return fields

    @cached_property
    def _fields(self) -> dict[str, GGUFValue]:
        return self.metadata(Type.F16)

    @cached_property
    def _first(self) -> GGUFFile:
        return GGUFFile(self._parts[0].delta.path)


def _scales_of(blend: Blend) -> Sequence[float]:
    n_deltas = len(blend.deltas)
    scales = blend.scales or (1.0,) * n_deltas
    if len(scales) != n_deltas:
        raise InputError(f"--scales: got {len(scales)} for {n_deltas} deltas, expected one for each")
    for scale in scales:
        if not abs(scale) <= np.finfo(np.float32).max:
            raise InputError(f"--scales: got {scale}, expected finite numbers")
    return scales


def _open_part(base: GgufModel, path: Path, scale: float, blend: Blend) -> _Part:
    delta = DeltaReader(path)
    comparison = delta.check_base(base.file)
    if comparison.match is not Match.SAME_FILE and not blend.allow_other_base:
        raise BaseMismatchError(
            f"{delta.path}: was made for another file of the model '{delta.base_name}' than {base.label} "
            f"(correlation {comparison.correlation:.4f}). Use --allow-other-base to merge with this one"
        )
    if blend.verify:
        delta.verify()
    return _Part(delta, frozenset(w.name for w in delta.weights), scale, comparison)


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
