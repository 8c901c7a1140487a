"""Fixtures that many tests share: a small base and a delta of it that has every form of the format."""

from __future__ import annotations

from pathlib import Path

import pytest

from delta_files import meta, write_base, write_delta
from dqrelo_gguf.fingerprint import base_identity
from server_fixtures import Artefacts, make_artefacts


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
