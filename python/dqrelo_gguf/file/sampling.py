"""Sampling defaults of a fine-tune, under general.sampling: which values a file may have."""

from __future__ import annotations

from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFValue, ValueType, type_text

_NO_NUMBERS = (ValueType.STRING, ValueType.BOOL, ValueType.ARRAY)


def sampling_problem(key: str, value: GGUFValue) -> str | None:
    """Why no sampler can have this value, None where one can, or where the key is none of a sampler's."""
    if key == fmt.KEY_SAMPLERS:
        n = 1 + str(value.value).count(";")
        too_many = f"metadata key '{key}' has {n} samplers, expected at most {fmt.MAX_SAMPLERS}"
        return too_many if n > fmt.MAX_SAMPLERS else None
    if key not in fmt.SAMPLING_NUMBERS:
        return None
    least, most = fmt.SAMPLING_NUMBERS[key]
    if value.type in _NO_NUMBERS:
        return f"metadata key '{key}' has type {type_text(value.type, value.sub_type)}, expected a number"
    if not least <= value.value <= most:
        return f"metadata key '{key}' is {value.value:g}, expected a number from {least:g} to {most:g}"
    return None
