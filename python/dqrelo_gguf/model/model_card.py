"""What a Hugging Face directory says of its model for people and samplers: typed and converted, or left out with a note.

llama.cpp's conversion takes the model card and generation_config.json as they are, and writes values of another type than
a GGUF's key has. Nothing here decides what is computed, so nothing of it stops a conversion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dqrelo_gguf.errors import printable

# The keys of a model card that the conversion reads, by the form of their values.
_TEXTS = frozenset(
    f"{prefix}{key}"
    for prefix in ("", "model_")
    for key in ("name", "author", "version", "organization", "description", "finetune", "basename", "size_label", "url",
                "doi", "uuid", "repo_url", "creator", "type", "license", "license_name", "license_link")
)  # fmt: skip
_TEXT_LISTS = frozenset({"tags", "pipeline_tag", "languages", "language"})
_SOURCES = frozenset(
    {"base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources"}
)  # texts, or tables of texts
_NULLS = ("", "~", "null")  # YAML's words for nothing


@dataclass(frozen=True)
class _Number:
    """A sampling default of generation_config.json, with the values that a sampler can have (cpp/server/delta-sampling.cpp)."""

    kind: type[int | float]
    least: float
    most: float


_SAMPLING = {
    "top_k": _Number(int, -1, 1e9),
    "top_p": _Number(float, 0, 1),
    "min_p": _Number(float, 0, 1),
    "xtc_probability": _Number(float, 0, 1),
    "xtc_threshold": _Number(float, 0, 1),
    "temperature": _Number(float, -1, 1000),
    "penalty_last_n": _Number(int, -1, 1 << 20),
    "penalty_repeat": _Number(float, 0.001, 1000),
    "repetition_penalty": _Number(float, 0.001, 1000),
    "mirostat": _Number(int, 0, 2),
    "mirostat_tau": _Number(float, 0, 1000),
    "mirostat_eta": _Number(float, 0, 1000),
}
SAMPLING_KEYS = frozenset({*_SAMPLING, "sequence"})
_MAX_SAMPLERS = 32

Note = Callable[[str], None]


def model_card(path: Path, note: Note) -> dict[str, Any]:
    """The front matter of a README.md, with values of the types that the conversion takes.

    Args:
        path: the README.md; it may be missing.
        note: is told what is left out, and why.
    """
    if not path.is_file():
        return {}
    lines: Sequence[str] = ()
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
        if not lines or lines[0] != "---":
            return {}
        end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
        text = "\n".join(lines[1:end]).replace("\t", "  ")
        # The base loader makes a text of every scalar, so that a version stays 1.0 and a language stays no.
        card = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes texts, lists and tables only
    except UnicodeDecodeError:
        note("README.md: is not UTF-8, and is left out")
        return {}
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        note(f"README.md: its front matter is not YAML ({_reason(e)}), and is left out")
        return {}
    if not isinstance(card, dict):
        note("README.md: its front matter is no table, and is left out")
        return {}
    typed = {key: _card_value(key, value) for key, value in card.items() if key in _TEXTS | _TEXT_LISTS | _SOURCES}
    for key, value in typed.items():
        if value is None and card[key] not in _NULLS:
            note(f"README.md: {key} is {_show(card[key])}, which no GGUF has a place for, and is left out")
    return {key: value for key, value in typed.items() if value is not None}


def _card_value(key: str, value: Any) -> Any:
    """A value in the form that its key has, or None."""
    if key in _SOURCES:
        sources = [_source(entry) for entry in (value if isinstance(value, list) else [value])]
        return sources if sources and all(sources) else None
    texts = [t for t in map(_text, value if isinstance(value, list) else [value]) if t is not None]
    if len(texts) != (len(value) if isinstance(value, list) else 1) or not texts:
        return None
    return ", ".join(texts) if key in _TEXTS else texts


def _source(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return _text(entry)
    table = {str(key): _text(value) for key, value in entry.items()}
    return table if table and all(table.values()) else None


def _text(value: Any) -> str | None:
    """A text that is UTF-8 and not empty, or None."""
    if not isinstance(value, str) or value.lower() in _NULLS:
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    return value


def read_object(path: Path, note: Note) -> dict[str, Any]:
    """A JSON object from a file that describes; empty, with a note, where it is none."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as e:
        note(f"{path.name}: is not JSON ({_reason(e)}), and is left out")
        return {}
    if not isinstance(document, dict):
        note(f"{path.name}: is no JSON object, and is left out")
        return {}
    return document


def sampling_defaults(config: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """The sampling defaults of a generation_config.json, as the numbers that a GGUF and a sampler can have."""
    defaults: dict[str, Any] = {}
    for key, rule in _SAMPLING.items():
        value = config.get(key)
        if value is None:
            continue
        number = _number(value, rule)
        if number is None:
            words = "whole number" if rule.kind is int else "number"
            note(
                f"generation_config.json: {key} is {_show(value)}, expected a {words} from {rule.least:g} to "
                f"{rule.most:g}, and is left out"
            )
        else:
            defaults[key] = number
    sequence = config.get("sequence")
    if sequence is not None:
        if is_sampling_default("sequence", sequence):
            defaults["sequence"] = sequence
        else:
            note("generation_config.json: sequence is no list of samplers, and is left out")
    return defaults


def is_sampling_default(name: str, value: Any) -> bool:
    """True if a sampler can have the value under `general.sampling.<name>`; of other names nothing is known."""
    if name == "sequence":
        return _text(value) is not None and value.count(";") < _MAX_SAMPLERS
    rule = _SAMPLING.get("temperature" if name == "temp" else name)
    return rule is None or _number(value, rule) is not None


def _number(value: Any, rule: _Number) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not rule.least <= value <= rule.most:
        return None  # NaN is in no range.
    if rule.kind is int:
        return int(value) if math.floor(value) == value else None
    return float(value)


def _reason(error: Exception) -> str:
    return " ".join(printable(str(error)).split())[:100]


def _show(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 40 else text[:37] + "..."
