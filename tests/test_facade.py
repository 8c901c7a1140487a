"""The names of dqrelo_gguf itself."""

from __future__ import annotations

import pytest

import dqrelo_gguf


def test_public_names_are_importable() -> None:
    for name in dqrelo_gguf.__all__:
        assert getattr(dqrelo_gguf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dqrelo_gguf.nothing
