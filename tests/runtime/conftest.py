"""A base, and a delta of it, as dqrelo-convert makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dqrelo_gguf.cli import convert
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model


@pytest.fixture(scope="session")
def base(narrow_base: Path) -> Path:
    return narrow_base


@pytest.fixture(scope="session")
def delta_path(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("delta")
    tuned = write_model(folder / "tuned.gguf", NARROW, tuned_weights(base_weights(NARROW), 1), Type.F32, "words")
    path = folder / "words.dq.gguf"
    assert convert.main([str(base), str(tuned), "-o", str(path), "--rank", "8"]) == 0
    return path


@pytest.fixture(scope="module")
def runtime(base: Path) -> Iterator[Runtime]:
    with Runtime(base, n_threads=1) as rt:
        yield rt


@pytest.fixture(scope="module")
def delta(runtime: Runtime, delta_path: Path) -> Delta:
    return runtime.load_delta(delta_path)
