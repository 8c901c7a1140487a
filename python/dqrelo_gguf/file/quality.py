"""The quality record of a delta file: what it keeps of its fine-tune, as dqrelo-eval measured it (docs/format.md, section 8)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from dqrelo_gguf.errors import FormatError
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType

PREFIX: Final = "dqrelo.quality."
TEXT_BYTES_MAX: Final = 255
_KL_MAX, _COUNT_MAX, _RETENTION_MAX = 1e6, 2.0**31 - 1, 1e6

Kind = Literal["text", "digest", "count", "number"]
Part = Literal["measure", "on text", "on problems"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES = {
    "text": ValueType.STRING,
    "digest": ValueType.STRING,
    "count": ValueType.UINT32,
    "number": ValueType.FLOAT64,
}


@dataclass(frozen=True)
class Rule:
    """A field of the record.

    Args:
        name: its key without the prefix.
        kind: a text has at most TEXT_BYTES_MAX bytes, a digest is 64 lower-case hex digits, counts and numbers are bounded.
        part: all fields of a part are there, or none; those of "measure" exactly where another part is.
        least, most: bounds of a count or number.
    """

    name: str
    kind: Kind
    part: Part
    least: float = 0.0
    most: float = 0.0

    @property
    def key(self) -> str:
        return PREFIX + self.name

    @property
    def type(self) -> ValueType:
        return _TYPES[self.kind]

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of the right type, or None."""
        if self.kind == "digest" and _SHA256.fullmatch(value) is None:
            return f"{self.key} is '{value[:80]}', expected 64 lower-case hex digits"
        if self.kind == "text" and len(value.encode()) > TEXT_BYTES_MAX:
            return f"metadata key '{self.key}' has a text of {len(value.encode())} bytes, expected at most {TEXT_BYTES_MAX}"
        if self.kind in ("count", "number") and not self.least <= value <= self.most:
            return f"metadata key '{self.key}' is {value:g}, expected a number from {self.least:g} to {self.most:g}"
        return None


RULES: Final = (
    Rule("evaluator", "text", "measure"),
    Rule("tuned_sha256", "digest", "measure"),
    Rule("base_digest", "digest", "measure"),
    Rule("text", "text", "on text"),
    Rule("text_sha256", "digest", "on text"),
    Rule("n_ctx", "count", "on text", 1, _COUNT_MAX),
    Rule("n_tokens", "count", "on text", 1, _COUNT_MAX),
    Rule("kl", "number", "on text", 0, _KL_MAX),
    Rule("kl_error", "number", "on text", 0, _KL_MAX),
    Rule("kl_base", "number", "on text", 0, _KL_MAX),
    Rule("top_p", "number", "on text", 0, 1),
    Rule("problems", "text", "on problems"),
    Rule("problems_sha256", "digest", "on problems"),
    Rule("n_problems", "count", "on problems", 1, _COUNT_MAX),
    Rule("retention", "number", "on problems", -_RETENTION_MAX, _RETENTION_MAX),
    Rule("retention_low", "number", "on problems", -_RETENTION_MAX, _RETENTION_MAX),
    Rule("retention_high", "number", "on problems", -_RETENTION_MAX, _RETENTION_MAX),
)
TYPES: Final = {rule.key: (rule.type, None) for rule in RULES}


def read_quality(file: GGUFFile) -> dict[str, Any] | None:
    """The record by names of fields, None where the file has none."""
    record = {rule.name: file.value(rule.key) for rule in RULES if file.value_type(rule.key) is not None}
    return record or None


def quality_problem(record: dict[str, Any] | None) -> str | None:
    """What is wrong with a record whose values have their types, or None."""
    if record is None:
        return None
    parts = {rule.part for rule in RULES if rule.name in record} - {"measure"}
    if not parts:
        return "has a quality record without a measure, expected one on text or on problems"
    for rule in RULES:
        if rule.part != "measure" and rule.part not in parts:
            continue
        if rule.name not in record:
            return f"metadata key '{rule.key}' is missing"
        problem = rule.problem(record[rule.name])
        if problem is not None:
            return problem
    low, high = (record.get(name, 0.0) for name in ("retention_low", "retention_high"))
    if low > high:
        return f"{PREFIX}retention_low is {low:g}, expected at most {PREFIX}retention_high, {high:g}"
    return None


def quality_fields(record: dict[str, Any]) -> list[tuple[str, GGUFValue]]:
    """The keys of a record.

    Raises:
        FormatError: no file may have this record.
    """
    problem = quality_problem(record)
    if problem is not None:
        raise FormatError(f"quality record: {problem}")
    return [(rule.key, GGUFValue(record[rule.name], rule.type)) for rule in RULES if rule.name in record]
