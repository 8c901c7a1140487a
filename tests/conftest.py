"""Fixtures that many tests share: a small base and a delta of it that has every form of the format."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dqrelo_gguf.file.fingerprint import base_identity
from tests.support.delta_files import meta, write_base, write_delta
from tests.support.delta_server import CONTEXT, make_folder, text
from tests.support.server_fixtures import Artefacts, Server, make_artefacts, serve

BENCH = Path(__file__).resolve().parents[1] / "bench"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-architectures", action="store_true", help="write the table of docs/architectures.md (with -m '')"
    )


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base GGUF with eight small tensors of seven types."""
    return write_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.fixture(scope="session")
def small_delta(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Path:
    """A delta over small_base: planes, row, column and expert scales, factors in every type, dense weights."""
    path = tmp_path_factory.mktemp("delta") / "tuned.dq.gguf"
    about = meta(
        base_identity(small_base),
        chat_template="{{ messages }}",
        token_ids={"tokenizer.ggml.eos_token_id": 2},
        add_bos=True,
    )
    write_delta(path, about=about)
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The golden files."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """The example pair's base in F16, its deltas at 1/8, and one of them merged."""
    return make_artefacts(tmp_path_factory.getbasetemp() / "server-artefacts")


@pytest.fixture(scope="session")
def delta_folder(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --deltas-dir; tests leave it as it is."""
    return make_folder(artefacts, tmp_path_factory.mktemp("deltas") / "dir")


@pytest.fixture
def delta_server(artefacts: Artefacts, tmp_path: Path) -> Iterator[Server]:
    """A server with a --deltas-dir that the test may change."""
    folder = make_folder(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


@pytest.fixture(scope="session")
def delta_texts(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each delta says to delta_server.PROMPT, by a server that has them from the start."""
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    with serve(artefacts.base, tmp_path_factory.mktemp("texts"), *deltas, *CONTEXT) as running:
        return {name: text(running, name) for name in ("base", "words", "json", "loud")}


@pytest.fixture
def bench_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of bench/ as its programs do; they are no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]
