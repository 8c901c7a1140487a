"""The converter's options in a delta file: JSON, which the readers in Python and C++ must judge alike."""

from __future__ import annotations

import json
import math
from typing import Any

from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile


def parse_options(file: GGUFFile) -> dict[str, Any]:
    """The converter's options.

    Raises:
        FormatError: they are no JSON object of text and finite numbers (docs/format.md, section 3).
    """
    text = file.value(fmt.KEY_OPTIONS)
    try:
        options: Any = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
        json.dumps(options, ensure_ascii=False).encode()  # This fails for half of a surrogate pair, which is no text.
        is_flat = _depth(options) <= fmt.MAX_OPTIONS_DEPTH
    except (ValueError, RecursionError):
        options, is_flat = None, False
    if not text.startswith("{") or not isinstance(options, dict) or not is_flat:
        file.fail(f"{fmt.KEY_OPTIONS} is not a JSON object of text and numbers")
    return options


def _finite(text: str) -> float:
    """A number of JSON as a float; NaN, Infinity and what is too large for one are none."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _depth(value: Any) -> int:
    """How deeply objects and lists are nested."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)
