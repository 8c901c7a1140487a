"""What a delta file says about itself, gathered from base, fine-tune and options."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFValue, pack_value
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.model_card import Note, is_sampling_default
from dqrelo_gguf.model.vocabulary import changed_tokens
from dqrelo_gguf.version import __version__

# `general.*` keys that describe the fine-tune's file, not the fine-tune.
_NOT_CARRIED = frozenset(
    {
        fmt.KEY_GENERAL_TYPE,
        fmt.KEY_ARCHITECTURE,
        fmt.KEY_ALIGNMENT,
        fmt.KEY_NAME,
        "general.file_type",
        "general.quantization_version",
        "general.quantized_by",
    }
)


def delta_meta(
    base: GgufModel,
    tuned: Model,
    options: Options,
    *,
    name: str | None,
    reference: GgufModel | None,
    note: Note,
) -> DeltaMeta:
    """The metadata of a delta.

    Args:
        base: the base that the delta is for.
        tuned: the fine-tune: its template, special tokens, sampling defaults, licence and lineage are carried.
        options: recorded, so that the file says how it was made.
        name: of the fine-tune, or None for its own.
        reference: what the delta is against, or None for the base itself.
        note: is told what is left out, and why.

    Raises:
        InputError: the name is no text, or there are more end tokens than a file may have.
    """
    template = _value(tuned, fmt.KEY_CHAT_TEMPLATE)
    add_bos, add_eos = _value(tuned, fmt.KEY_ADD_BOS), _value(tuned, fmt.KEY_ADD_EOS)
    token_ids = {key: _value(tuned, key) for key in fmt.TOKEN_ID_KEYS}
    return DeltaMeta(
        architecture=base.architecture,
        name=name or tuned.name,
        method=options.method_name,
        converter=f"dqrelo-convert {__version__}",
        options=options.as_metadata(),
        base_name=base.name,
        base=base_identity(base.file),
        reference=fmt.REFERENCE_BASE if reference is None else Path(reference.path).name,
        chat_template=None if template is None else str(template),
        named_templates=_named_templates(tuned, note),
        token_ids={key: int(value) for key, value in token_ids.items() if value is not None},
        end_token_ids=_end_token_ids(base, tuned, note),
        add_bos=None if add_bos is None else bool(add_bos),
        add_eos=None if add_eos is None else bool(add_eos),
        changed_tokens=changed_tokens(base, tuned),
        general=_general(tuned, note),
    )


def _named_templates(tuned: Model, note: Note) -> dict[str, str]:
    """The chat templates besides the default one, by name; `tool_use` is the one that llama.cpp uses."""
    templates: dict[str, str] = {}
    for key in sorted(key for key in tuned.field_names() if key.startswith(fmt.PREFIX_CHAT_TEMPLATE)):
        name, text = key.removeprefix(fmt.PREFIX_CHAT_TEMPLATE), _value(tuned, key)
        if fmt.TEMPLATE_NAME.fullmatch(name) and isinstance(text, str) and len(templates) < fmt.MAX_TEMPLATES:
            templates[name] = text
        else:
            note(f"{printable(key)}: is no template of a name that a file can have, and is left out")
    return templates


def _end_token_ids(base: GgufModel, tuned: Model, note: Note) -> tuple[int, ...]:
    """All end tokens of the fine-tune, where it states them; empty where its keys say the same as the base's.

    A list says all of them, as in transformers. A single id is often the base's, left behind by a training run that gave
    the tokenizer another one, so the tokenizer's counts, too.
    """
    stated = tuned.end_tokens
    if stated is None:
        return ()
    eos = _value(tuned, fmt.EOS_ID_KEY)
    ids = stated.ids if stated.is_list or eos is None else tuple(dict.fromkeys((*stated.ids, int(eos))))
    n_tokens = len(_value(base, fmt.MODEL_TOKENS) or ())
    beyond = [i for i in ids if n_tokens and i >= n_tokens]
    if beyond:
        note(f"eos_token_id: the base has {n_tokens} tokens, so {beyond[0]} is none of them, and is left out")
        ids = tuple(i for i in ids if i not in beyond)
    if not stated.is_list and set(ids) == {eos} and eos == _value(base, fmt.EOS_ID_KEY):
        return ()
    if len(ids) > fmt.MAX_END_TOKENS:
        raise InputError(f"{tuned.label}: states {len(ids)} end tokens, expected at most {fmt.MAX_END_TOKENS}")
    return ids


def _general(tuned: Model, note: Note) -> dict[str, GGUFValue]:
    """The keys that describe the fine-tune. What a file could not hold, or a sampler not have, is left out."""
    carried = {}
    for key in tuned.field_names():
        field = tuned.field(key)
        if field is None or not key.startswith("general.") or key in _NOT_CARRIED:
            continue
        problem = _problem(key, field)
        if problem is None:
            carried[key] = field
        else:
            note(f"{key}: {problem}, and is left out")
    return carried


def _problem(key: str, field: GGUFValue) -> str | None:
    try:
        pack_value(field)
    except (struct.error, UnicodeEncodeError, TypeError, ValueError, AttributeError, OverflowError):
        return "has a value that is not of its type"
    numbers = field.value if isinstance(field.value, list) else [field.value]
    if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
        return "is no finite number"
    name = key.removeprefix("general.sampling.")
    if name != key and not is_sampling_default(name, field.value):
        return "is no value that a sampler can have"
    return None


def _value(model: Model, key: str) -> Any:
    field = model.field(key)
    return None if field is None else field.value
