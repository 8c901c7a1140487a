"""Loaded deltas, and the delta that each sequence of a call runs on."""

from __future__ import annotations

from collections.abc import Sequence

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.arguments import number
from dqrelo_gguf.runtime.native import core

Delta = core.Delta


def deltas_and_scales(
    n_sequences: int,
    delta: Delta | Sequence[Delta | None] | None,
    scale: float | Sequence[float],
    max_scale: float,
) -> tuple[list[Delta | None], list[float]]:
    """The delta and the request scale of each sequence: None is the base, and 1 all of a delta.

    Args:
        n_sequences: the sequences of the call.
        delta: one for all of them, or a list with one for each.
        scale: one for all of them, or a list with one for each.
        max_scale: the largest absolute value of a scale.

    Raises:
        InputError: a list of another length, or a scale that is too large or no number.
    """
    deltas = [delta] * n_sequences if delta is None or isinstance(delta, Delta) else list(delta)
    scales = [float(scale)] * n_sequences if isinstance(scale, (int, float)) else [float(value) for value in scale]
    for name, given in (("delta", deltas), ("scale", scales)):
        if len(given) != n_sequences:
            raise InputError(f"{name}: got a list of {len(given)}, expected one for each of {n_sequences} sequences")
    for value in scales:
        number("scale", value, -max_scale, max_scale)
    return deltas, scales
