"""Fixtures of several folders: small files in every form of the format, families of models, and what servers run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dqrelo_gguf.file.fingerprint import base_identity
from tests.support.delta_files import SPECS_2, SPECS_SPARSE, meta, write_base, write_delta
from tests.support.delta_server import make_folder
from tests.support.server_fixtures import Artefacts, make_artefacts
from tests.support.tiny_llama import NARROW, Type, base_weights, write_model, write_random_delta
from tests.support.trio import TEXT, Trio, make_trio

if TYPE_CHECKING:
    from tests.support.families import Family, Maker
    from tests.support.tiny_llama import Shape


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
def small_delta_2(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Path:
    """A delta of version 2 over small_base: sign factors in every surrounding, factors without planes."""
    path = tmp_path_factory.mktemp("delta") / "tuned-2.dq.gguf"
    write_delta(path, SPECS_2, meta(base_identity(small_base)))
    return path


@pytest.fixture(scope="session")
def small_sparse_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta with sparse weights of every form, over an invented base."""
    path = tmp_path_factory.mktemp("delta") / "tuned-sparse.dq.gguf"
    write_delta(path, SPECS_SPARSE)
    return path


@pytest.fixture(scope="session")
def narrow_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of the shape NARROW that runs, in F16."""
    path = tmp_path_factory.mktemp("narrow") / "base.gguf"
    return write_model(path, NARROW, base_weights(NARROW), Type.F16)


@pytest.fixture(scope="session")
def narrow_deltas(tmp_path_factory: pytest.TempPathFactory, narrow_base: Path) -> list[Path]:
    """Two random deltas of every weight of narrow_base."""
    folder = tmp_path_factory.mktemp("narrow-deltas")
    ranks = {"math": 2, "words": 8}
    return [write_random_delta(folder / f"{name}.dq.gguf", narrow_base, NARROW, rank) for name, rank in ranks.items()]


@pytest.fixture(scope="session")
def trio(narrow_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """narrow_base, a fine-tune of it, and a fine and a coarse delta of that."""
    return make_trio(narrow_base, tmp_path_factory.mktemp("trio"))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text of some hundred tokens."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 12, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes a family of a shape and a base type; the same one is made once."""
    # This is imported late, because tests of files need no native module.
    from tests.support.families import write_family

    made: dict[tuple[Shape, str, int, tuple[str, ...]], Family] = {}

    def make(shape: Shape, base_type: str = "F16", n_tuned: int = 2, *options: str) -> Family:
        key = (shape, base_type, n_tuned, options)
        if key not in made:
            made[key] = write_family(tmp_path_factory.mktemp("family"), *key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """The example pair's base in F16, its deltas at 1/8, and one of them merged."""
    return make_artefacts(tmp_path_factory.getbasetemp() / "server-artefacts")


@pytest.fixture(scope="session")
def delta_folder(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --deltas-dir; tests leave it as it is."""
    return make_folder(artefacts, tmp_path_factory.mktemp("deltas") / "dir")
