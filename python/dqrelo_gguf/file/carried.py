"""Checks of what a delta file carries for its users: token ids, chat templates, options, sampling defaults, the quality record.

The types of the keys are checked before (validate.py).
"""

from __future__ import annotations

from dqrelo_gguf.errors import shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType, type_text
from dqrelo_gguf.file.options import parse_options
from dqrelo_gguf.file.quality import quality_problem, read_quality
from dqrelo_gguf.file.sampling import sampling_problem

_STRING = (ValueType.STRING, None)


def check_carried(file: GGUFFile) -> None:
    """Checks the values.

    Raises:
        FormatError: with the first thing that is wrong.
    """
    _check_token_ids(file)
    _check_changed_tokens(file)
    _check_templates(file)
    parse_options(file)
    _check_sampling(file)
    _check_quality(file)


def _check_token_ids(file: GGUFFile) -> None:
    for key in fmt.TOKEN_ID_KEYS:
        if file.value(key, 0) >= 1 << 31:
            file.fail(f"metadata key '{key}' is {file.value(key)}, expected a token id under 2^31")
    for key in (fmt.KEY_CHANGED_IDS, fmt.KEY_END_TOKENS):
        largest = max(file.value(key, ()), default=0)
        if largest >= 1 << 31:
            file.fail(f"metadata key '{key}' has {largest}, expected token ids under 2^31")
    _check_end_tokens(file)


def _check_end_tokens(file: GGUFFile) -> None:
    if file.value_type(fmt.KEY_END_TOKENS) is None:
        return
    ids = file.value(fmt.KEY_END_TOKENS)
    if not 1 <= len(ids) <= fmt.MAX_END_TOKENS or len(set(ids)) != len(ids):
        file.fail(
            f"metadata key '{fmt.KEY_END_TOKENS}' has {len(ids)} tokens, {len(set(ids))} of them different, "
            f"expected 1 to {fmt.MAX_END_TOKENS} different ones"
        )


def _check_templates(file: GGUFFile) -> None:
    """The named chat templates: each a string, and listed once."""
    keys = file.keys()
    found = sorted(
        key.removeprefix(fmt.PREFIX_CHAT_TEMPLATE) for key in keys if key.startswith(fmt.PREFIX_CHAT_TEMPLATE)
    )
    for name in found:
        key = fmt.PREFIX_CHAT_TEMPLATE + name
        if fmt.TEMPLATE_NAME.fullmatch(name) is None:
            file.fail(
                f"metadata key '{shown(key)}' has a name of other characters than letters, digits and '_', or too many"
            )
        if file.value_type(key) != _STRING:
            file.fail(f"metadata key '{key}' has type {type_text(*(file.value_type(key) or _STRING))}, expected STRING")
    if len(found) > fmt.MAX_TEMPLATES:
        file.fail(f"has {len(found)} named chat templates, expected at most {fmt.MAX_TEMPLATES}")
    if sorted(file.value(fmt.KEY_CHAT_TEMPLATES, [])) != found:
        file.fail(f"metadata key '{fmt.KEY_CHAT_TEMPLATES}' does not list the named chat templates, each once")


def _check_changed_tokens(file: GGUFFile) -> None:
    keys = (fmt.KEY_CHANGED_IDS, fmt.KEY_CHANGED_TEXTS, fmt.KEY_CHANGED_TYPES)
    lengths = [len(file.value(key, [])) for key in keys]
    if len(set(lengths)) != 1:
        file.fail(f"{', '.join(keys)}: have {lengths} entries, expected equal numbers")


def _check_sampling(file: GGUFFile) -> None:
    """Sampling defaults are such as a sampler can have."""
    for key in (*fmt.SAMPLING_NUMBERS, fmt.KEY_SAMPLERS):
        value_type, item_type = file.value_type(key) or (None, None)
        if value_type is not None:
            problem = sampling_problem(key, GGUFValue(file.value(key), value_type, item_type))
            if problem is not None:
                file.fail(problem)


def _check_quality(file: GGUFFile) -> None:
    problem = quality_problem(read_quality(file))
    if problem is not None:
        file.fail(problem)
