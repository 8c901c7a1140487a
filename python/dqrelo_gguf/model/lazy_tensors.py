"""Evaluates the lazy tensors of llama.cpp's conversion one at a time, and keeps nothing of them."""

# ruff: noqa: SLF001 - the graph of a lazy tensor has no public form; the pin fixes its private one

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf


def evaluate(tensor: Any) -> npt.NDArray[Any]:
    """The value of a lazy tensor of the conversion.

    Unlike its own `to_eager` it keeps nothing: intermediate values go as soon as they are used, and the tensor can be
    evaluated again.
    """
    if isinstance(tensor, gguf.LazyChunkedTensor):
        return np.concatenate([gguf.quants.quantize(c(), gguf.GGMLQuantizationType.F32) for c in tensor._chunks])
    uses: Counter[int] = Counter()
    _count_uses(tensor, uses)
    shared: dict[int, Any] = {}

    def value_of(t: Any) -> Any:
        if t._data is not None:
            return t._data
        if id(t) in shared:
            return shared[id(t)]
        value = t._func(*gguf.LazyBase._recurse_apply(t._args, value_of), **t._kwargs)
        if uses[id(t)] > 1:
            shared[id(t)] = value
        return value

    values: npt.NDArray[Any] = gguf.LazyBase._recurse_apply(tensor, value_of)
    return values


def sources_of(tensor: Any) -> list[Any]:
    """What the graph of a lazy tensor begins with: arguments that are no lazy tensors, in the order in which `evaluate` uses them."""
    found: list[Any] = []

    def collect(t: Any) -> None:
        found.extend(source for source in t._args if not isinstance(source, gguf.LazyBase))

    if not isinstance(tensor, gguf.LazyChunkedTensor):
        _count_uses(tensor, Counter(), collect)
    return found


def as_floats(values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[np.float32]:
    """What the conversion would write of a tensor's values, as float32; a new array."""
    if dtype not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        values = gguf.quants.dequantize(values, dtype)
    return np.require(values, np.float32, ["C", "W"])


def _count_uses(tensor: Any, uses: Counter[int], visited: Callable[[Any], None] = lambda _: None) -> None:
    """How often each node of a lazy tensor's graph is an argument; `visited` is told of each that has no value yet, once."""

    def visit(t: Any) -> Any:
        uses[id(t)] += 1
        if uses[id(t)] == 1 and t._data is None:
            visited(t)
            gguf.LazyBase._recurse_apply(t._args, visit)
        return t

    gguf.LazyBase._recurse_apply(tensor, visit)
