"""What a delta file says about itself, and the metadata keys of its header (docs/format.md, section 3)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dqrelo_gguf.errors import FormatError, NonFiniteError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import BaseIdentity
from dqrelo_gguf.file.layout import TensorSpec, WeightSpec, content_hash, delta_ratio, delta_version, padded_ne
from dqrelo_gguf.file.sampling import sampling_problem

NO_SHA256 = "0" * 64  # It stands for a digest that is not known yet, and has its length.


@dataclass(frozen=True)
class Token:
    """A token of the fine-tune that is not the base's: its id, text and GGUF type."""

    id: int
    text: str
    type: int


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
        named_templates: other chat templates of the fine-tune, by name.
        token_ids: token ids of the fine-tune by key (format.TOKEN_ID_KEYS).
        end_token_ids: all tokens that end an answer; empty where those of the keys and of the vocabulary do.
        add_bos: whether texts begin with BOS; None for the base's.
        add_eos: whether they end with EOS; None for the base's.
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
    named_templates: Mapping[str, str] = field(default_factory=dict)
    token_ids: Mapping[str, int] = field(default_factory=dict)
    end_token_ids: Sequence[int] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    changed_tokens: Sequence[Token] = ()
    general: Mapping[str, GGUFValue] = field(default_factory=dict)


def metadata_fields(
    meta: DeltaMeta, specs: Sequence[WeightSpec], sha256: Sequence[str], errors: Sequence[tuple[float, float]]
) -> list[tuple[str, GGUFValue]]:
    """All keys of a delta file, in file order. Their size does not depend on how much is written yet.

    Args:
        meta: what the file says about itself.
        specs: its weights, in file order.
        sha256: the digests of the tensors that are written.
        errors: (error_delta, error_weight) of the weights that are written.

    Raises:
        FormatError: a key that the format has no place for.
        NonFiniteError: a number that is NaN or infinite.
    """
    tensors = [t for spec in specs for t in spec.tensors()]
    is_whole = len(sha256) == len(tensors)
    sha256 = [*sha256, *[NO_SHA256] * (len(tensors) - len(sha256))]
    errors = [*errors, *[(0.0, 0.0)] * (len(specs) - len(errors))]
    fields = [
        *_general_fields(meta),
        *_delta_fields(meta, specs, content_hash(tensors, sha256) if is_whole else NO_SHA256),
        *_tensor_fields(tensors, sha256),
        *_weight_fields(specs, errors),
        *_base_fields(meta),
        *_tokenizer_fields(meta),
    ]
    for key, value in fields:
        _check_finite(key, value)
        problem = sampling_problem(key, value)
        if problem is not None:
            raise FormatError(f"{problem}. Mend the fine-tune's generation_config.json")
    return fields


def _check_finite(key: str, value: GGUFValue) -> None:
    if (value.sub_type or value.type) in (ValueType.FLOAT32, ValueType.FLOAT64):
        numbers = value.value if value.type == ValueType.ARRAY else [value.value]
        if not all(math.isfinite(number) for number in numbers):
            raise NonFiniteError(f"metadata key '{key}' would have numbers that are NaN or infinite")


def _delta_fields(meta: DeltaMeta, specs: Sequence[WeightSpec], content: str) -> list[tuple[str, GGUFValue]]:
    options = json.dumps(meta.options, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return [
        (fmt.KEY_ADAPTER_TYPE, _string(fmt.ADAPTER_TYPE)),
        (fmt.KEY_VERSION, _u32(delta_version(specs))),
        (fmt.KEY_METHOD, _string(meta.method)),
        (fmt.KEY_CONVERTER, _string(meta.converter)),
        (fmt.KEY_OPTIONS, _string(options)),
        (fmt.KEY_RATIO, GGUFValue(delta_ratio(specs), ValueType.FLOAT64)),
        (fmt.KEY_CONTENT_HASH, _string(content)),
        (fmt.KEY_REFERENCE, _string(meta.reference)),
    ]


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
    codes = []
    if delta_version(specs) == fmt.VERSION_SIGN_FACTORS:
        ranks = [r for s in specs for r in (*s.plane_ranks, *[0] * (fmt.MAX_CODE_PLANES - len(s.plane_ranks)))]
        codes = [(fmt.KEY_WEIGHT_PLANE_RANKS, _array(ranks, ValueType.UINT32))]
    entries = []
    if any(s.sparse is not None for s in specs):
        n_entries = [0 if s.sparse is None else s.sparse.n_entries for s in specs]
        entries = [(fmt.KEY_WEIGHT_N_ENTRIES, _array(n_entries, ValueType.UINT64))]
    return [
        (fmt.KEY_WEIGHT_NAMES, _array([s.name for s in specs], ValueType.STRING)),
        (fmt.KEY_WEIGHT_NE, _array([n for s in specs for n in padded_ne(s.ne)], ValueType.UINT64)),
        (fmt.KEY_WEIGHT_RANK, _array([s.rank for s in specs], ValueType.UINT32)),
        (fmt.KEY_WEIGHT_N_PLANES, _array([s.n_planes for s in specs], ValueType.UINT32)),
        *codes,
        *entries,
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
    fields: list[tuple[str, GGUFValue]] = []
    if meta.chat_template is not None:
        fields.append((fmt.KEY_CHAT_TEMPLATE, _string(meta.chat_template)))
    if meta.named_templates:
        names = sorted(meta.named_templates)
        fields += [(fmt.PREFIX_CHAT_TEMPLATE + name, _string(meta.named_templates[name])) for name in names]
        fields.append((fmt.KEY_CHAT_TEMPLATES, _array(names, ValueType.STRING)))
    fields += [(key, _u32(meta.token_ids[key])) for key in fmt.TOKEN_ID_KEYS if key in meta.token_ids]
    if meta.end_token_ids:
        fields.append((fmt.KEY_END_TOKENS, _array(meta.end_token_ids, ValueType.UINT32)))
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
