"""Shapes of bench/support/large_shapes.py that are small."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def small(bench_module: Callable[[str], ModuleType], **sizes: Any) -> Any:
    """A LargeShape of a few thousand weights, with other sizes where they are given."""
    shapes = bench_module("support.large_shapes")
    given = {"n_layer": 2, "n_embd": 64, "n_ff": 96, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_vocab": 400}
    return shapes.LargeShape("small", **{**given, **sizes})
