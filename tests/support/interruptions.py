"""Conversions that end in the middle, as a signal ends them."""

from __future__ import annotations

import pytest

from dqrelo_gguf.convert import tasks
from dqrelo_gguf.convert.encode import encode_weight


class KilledError(BaseException):
    """Stands for a signal: nothing catches it."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException | None = None) -> list[str]:
    """Lets a conversion end when weight n is to be encoded; returns the names of those that are."""
    names: list[str] = []

    def encode(planned: object, *args: object) -> object:
        if len(names) == n:
            raise error or KilledError
        names.append(planned.spec.name)  # type: ignore[attr-defined]
        return encode_weight(planned, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "encode_weight", encode)
    return names
