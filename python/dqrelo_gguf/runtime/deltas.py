"""Loaded deltas, and which of them each sequence of a call runs on: one, none, or a blend of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.native import core
from dqrelo_gguf.runtime.arguments import number

Delta = core.Delta

Blend: TypeAlias = Sequence[tuple[Delta, float]]
"""Deltas, each with its scale, that are added to the base together. Text begins and ends as the first one's."""

MAX_PARTS = 8
"""Deltas of a blend at most: DQRELO_MAX_PARTS of the C API."""


def blends_of(
    n_sequences: int,
    delta: Delta | Blend | Sequence[Delta | Blend | None] | None,
    scale: float | Sequence[float],
    max_scale: float,
) -> list[list[tuple[Delta, float]]]:
    """The parts of each sequence, with their request scales: none are the base.

    Args:
        n_sequences: the sequences of the call.
        delta: one delta or blend for all of them, or a list with one (None: the base) for each.
        scale: how much of it, one for all of them, or a list with one for each.
        max_scale: the largest absolute value of a part's scale, times `scale`.

    Raises:
        InputError: a list of another length, a part that is none, too many parts, one twice, or a scale that is too large or no number.
    """
    if delta is None or isinstance(delta, Delta) or _is_blend(delta):
        each = [cast("Delta | Blend | None", delta)] * n_sequences
    else:
        each = list(cast("Sequence[Delta | Blend | None]", delta))
    scales = [float(scale)] * n_sequences if isinstance(scale, (int, float)) else [float(value) for value in scale]
    for name, given in (("delta", each), ("scale", scales)):
        if len(given) != n_sequences:
            raise InputError(f"{name}: got a list of {len(given)}, expected one for each of {n_sequences} sequences")
    for value in scales:
        number("scale", value, -max_scale, max_scale)
    return [_parts_of(own, value, max_scale) for own, value in zip(each, scales, strict=True)]


def first_of(parts: Sequence[tuple[Delta, float]]) -> Delta | None:
    """The delta by whose rules a text of a blend begins and ends; None is the base."""
    return parts[0][0] if parts else None


def _is_blend(value: object) -> bool:
    """Whether it is a sequence of pairs, rather than one of deltas and blends."""
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(part, tuple) and len(part) == 2 and not isinstance(part[1], tuple) for part in value)
    )


def _parts_of(delta: Delta | Blend | None, scale: float, max_scale: float) -> list[tuple[Delta, float]]:
    if delta is None:
        return []
    if isinstance(delta, Delta):
        return [(delta, scale)]
    if not _is_blend(delta) or not all(isinstance(part, Delta) for part, _ in delta):
        raise InputError(f"delta: got {delta!r}, expected a delta, None, or a blend: a list of (delta, scale)")
    if len(delta) > MAX_PARTS:
        raise InputError(f"delta: got a blend of {len(delta)} deltas, expected at most {MAX_PARTS}")
    parts: list[tuple[Delta, float]] = []
    for part, own in delta:
        if any(part is other for other, _ in parts):
            raise InputError(f"delta: {part.name!r} is twice in a blend. Give it once, with the sum of the scales")
        parts.append((part, scale * number(f"scale of {part.name!r}", own, -max_scale, max_scale)))
    for part, product in parts:
        number(f"scale of {part.name!r}", product, -max_scale, max_scale)
    return parts
