"""A device that is no CPU, without one: tensors that lie elsewhere, and are computed with on the CPU all the same.

They say that their device is `meta`. As on a GPU, an operation on one of them may have no operand on the CPU but numbers, and
numpy cannot read it: that takes `.cpu()`. What is computed is what the CPU computes, so results can be compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
# Copies from one device to another.
_COPIES = frozenset({torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default})


class Elsewhere(torch.Tensor):
    """A tensor that lies elsewhere."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        """Wraps a tensor of the CPU's."""
        own = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        own.inner = inner
        return own

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """An operation on some of them."""
        return _compute(func, args, kwargs or {})


class ElsewhereMode(TorchDispatchMode):
    """Where it is active in a thread, the device exists."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any operation, those that make a tensor included."""
        return _compute(func, args, kwargs or {})


def _compute(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, dict(kwargs)))[0] if isinstance(t, torch.Tensor)]
    outside = [t for t in tensors if isinstance(t, Elsewhere)]
    mixed = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim > 0]
    if outside and mixed and func not in _COPIES:
        raise RuntimeError(f"{func}: one operand lies on {DEVICE}, and one of {tuple(mixed[0].shape)} on the CPU")
    wanted = kwargs.get("device")
    is_outside = bool(outside) if wanted is None else torch.device(wanted) == DEVICE
    if func is torch.ops.aten.copy_.default:
        is_outside = isinstance(args[0], Elsewhere)
    given = {**kwargs, "device": torch.device("cpu")} if wanted is not None else dict(kwargs)
    out = func(*tree_map(_inner, tuple(args)), **tree_map(_inner, given))
    # What an operation changes in place stays the tensor that it was.
    before = {id(t.inner): t for t in outside}

    def outer(value: Any) -> Any:
        if not is_outside or not isinstance(value, torch.Tensor):
            return value
        return before[id(value)] if id(value) in before else Elsewhere(value)

    return tree_map(outer, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value
