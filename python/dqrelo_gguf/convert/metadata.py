"""What a delta file says about itself, gathered from base, fine-tune and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.model.base import GgufModel, Model
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
    base: GgufModel, tuned: Model, options: Options, *, name: str | None, reference: GgufModel | None
) -> DeltaMeta:
    """The metadata of a delta.

    Args:
        base: the base that the delta is for.
        tuned: the fine-tune: its template, special tokens, sampling defaults, licence and lineage are carried.
        options: recorded, so that the file says how it was made.
        name: of the fine-tune, or None for its own.
        reference: what the delta is against, or None for the base itself.
    """
    template = _value(tuned, fmt.KEY_CHAT_TEMPLATE)
    add_bos, add_eos = _value(tuned, fmt.KEY_ADD_BOS), _value(tuned, fmt.KEY_ADD_EOS)
    token_ids = {key: _value(tuned, key) for key in fmt.TOKEN_ID_KEYS}
    general = {key: tuned.field(key) for key in tuned.field_names() if key.startswith("general.")}
    return DeltaMeta(
        architecture=base.architecture,
        name=name or tuned.name,
        method=fmt.METHOD_PAPER if options.method_name == "paper" else fmt.METHOD_BEST,
        converter=f"dqrelo-convert {__version__}",
        options=options.as_metadata(),
        base_name=base.name,
        base=base_identity(base.file),
        reference=fmt.REFERENCE_BASE if reference is None else Path(reference.path).name,
        chat_template=None if template is None else str(template),
        token_ids={key: int(value) for key, value in token_ids.items() if value is not None},
        add_bos=None if add_bos is None else bool(add_bos),
        add_eos=None if add_eos is None else bool(add_eos),
        changed_tokens=changed_tokens(base, tuned),
        general={key: value for key, value in general.items() if value is not None and key not in _NOT_CARRIED},
    )


def _value(model: Model, key: str) -> Any:
    field = model.field(key)
    return None if field is None else field.value
