"""Checks of what a caller gives, before the native module sees it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.open_file import require_file

Tokens: TypeAlias = NDArray[np.integer] | Sequence[int]
"""Token ids of one sequence: a 1-D integer array or a list of ints."""

Prompt: TypeAlias = str | Tokens
"""A text, which is tokenized with the special tokens that its model wants in front, or tokens as they are."""

_INT32 = np.iinfo(np.int32)


def existing_file(path: str | os.PathLike[str]) -> str:
    """The path of a regular file that is there.

    Raises:
        InputError: it is not.
    """
    require_file(path)
    return os.fspath(path)


def count(name: str, value: int, least: int) -> int:
    """A whole number of 32 bits.

    Raises:
        InputError: it is none, or smaller than `least`; `name` is the argument that is named.
    """
    if value != int(value) or not least <= value <= _INT32.max:
        raise InputError(f"{name}: got {value}, expected a whole number from {least} to {_INT32.max}")
    return int(value)


def number(name: str, value: float, least: float, most: float) -> float:
    """A finite number.

    Raises:
        InputError: it is none, or not from `least` to `most`; `name` is the argument that is named.
    """
    if not math.isfinite(value) or not least <= value <= most:
        raise InputError(f"{name}: got {value}, expected a finite number from {least} to {most}")
    return float(value)


def stop_texts(stop: str | Sequence[str] | None) -> list[str]:
    """The texts that end a generation, none of them empty.

    Raises:
        InputError: one of them is empty.
    """
    texts = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    if "" in texts:
        raise InputError("stop: got an empty text, expected at least one character")
    return texts


def prompt_list(value: Prompt | Sequence[Prompt]) -> tuple[bool, list[Prompt]]:
    """Whether `value` is one prompt rather than a list of them, and the list."""
    if isinstance(value, str):
        return True, [value]
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return True, [value]
    if len(value) > 0 and isinstance(value[0], (int, float, np.number)):
        return True, [cast("Tokens", value)]
    return False, list(cast("Sequence[Prompt]", value))


def token_array(tokens: Tokens) -> NDArray[np.int32]:
    """Token ids as int32 [n_tokens].

    Raises:
        InputError: another shape than [n_tokens], or something else than 32-bit integers.
    """
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InputError(f"tokens: got an array of shape {array.shape}, expected [n_tokens]")
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise InputError(f"tokens: got an array of {array.dtype}, expected integers")
    for bound in (array.min(), array.max()):
        if not _INT32.min <= bound <= _INT32.max:
            raise InputError(f"tokens: {bound} is no token id, expected 32-bit integers")
    return np.ascontiguousarray(array, np.int32)
