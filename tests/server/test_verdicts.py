"""The table of valid and invalid files, through everything that reads deltas: both readers, inspect, merge, and the server's loader."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dqrelo_gguf.cli import inspect, merge
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import SparseSpec, WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import Type, meta, write_delta
from tests.support.delta_server import CONTEXT
from tests.support.programs import need_test_program
from tests.support.server_fixtures import Artefacts, Server, serve
from tests.support.verdicts import Verdict, make_file, names

NAMES = names()


@dataclass(frozen=True)
class Table:
    """The files, and a server that has all of them."""

    base: Path
    files: dict[str, Path]
    verdicts: dict[str, Verdict]
    server: Server

    def check(self, name: str, reader: str, line: str | None) -> None:
        """`line` is what the reader says, None where it took the file."""
        expected = self.verdicts[name].by(reader)
        if expected is None:
            assert line is None
            return
        assert line is not None, f"taken, expected: {expected}"
        assert re.search(expected.removesuffix("$"), line), line
        assert "\n" not in line.strip()
        assert len(line) < 1500
        assert "std::" not in line
        assert line.strip().isprintable()


# Weights of examples/tiny. The first tensor is one whose damage only its digest tells.
SPARSE = [
    WeightSpec("blk.0.attn_q.weight", (128, 128)),
    WeightSpec.of_entries("blk.0.attn_k.weight", (128, 64), SparseSpec(700, Type.I8, has_mask=False)),
    WeightSpec.of_entries("blk.0.ffn_up.weight", (128, 384), SparseSpec(9000, Type.I8, has_mask=True)),
    WeightSpec.of_entries("blk.0.ffn_down.weight", (384, 128), SparseSpec(4000, Type.BF16, has_mask=False)),
]


@pytest.fixture(scope="module")
def table(
    artefacts: Artefacts,
    small_delta: Path,
    small_delta_2: Path,
    small_sparse_delta: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Table]:
    folder = tmp_path_factory.mktemp("verdicts") / "dir"
    folder.mkdir()
    sparse = tmp_path_factory.mktemp("sparse") / "sparse.dq.gguf"
    write_delta(sparse, SPARSE, meta(base_identity(artefacts.base)))
    sound = {
        "json": artefacts.json,
        "words": artefacts.words,
        "sparse": sparse,
        "malformed": small_delta,
        "malformed 2": small_delta_2,
        "malformed sparse": small_sparse_delta,
    }
    files = {name: folder / f"file-{i}.dq.gguf" for i, name in enumerate(NAMES)}
    verdicts = {name: make_file(name, sound, path) for name, path in files.items()}
    with serve(artefacts.base, folder.parent, "--deltas-dir", folder, *CONTEXT) as server:
        yield Table(artefacts.base, files, verdicts, server)


@pytest.mark.parametrize("name", NAMES)
def test_python_reader(table: Table, name: str) -> None:
    line = None
    try:
        reader = DeltaReader(table.files[name])
        reader.verify()
        reader.check_base(table.base)
    except DqreloError as e:
        line = str(e)
    table.check(name, "python", line)


@pytest.mark.parametrize("name", NAMES)
def test_cpp_reader(table: Table, name: str) -> None:
    command = [need_test_program("dqrelo-check-file"), table.files[name], table.base]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    reasons = [text.removeprefix("reason=") for text in done.stdout.splitlines() if text.startswith("reason=")]
    line = done.stderr if done.returncode else "".join(reasons) or None
    table.check(name, "cpp", line)


@pytest.mark.parametrize("name", NAMES)
def test_inspect(table: Table, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = inspect.main([str(table.files[name]), "--verify", "--check", str(table.base)])
    table.check(name, "inspect", capsys.readouterr().err if code else None)


@pytest.mark.parametrize("name", NAMES)
def test_merge(table: Table, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged.gguf"
    code = merge.main([str(table.base), str(table.files[name]), "-o", str(out), "-t", "1"])
    table.check(name, "merge", capsys.readouterr().err if code else None)
    assert out.exists() == (code == 0)


@pytest.mark.parametrize("name", NAMES)
def test_server(table: Table, name: str) -> None:
    model = table.files[name].name.removesuffix(".dq.gguf")
    answer = table.server.post("/completion", {"model": model, "prompt": "a", "n_predict": 1})
    assert answer.status_code in (200, 500), answer.text
    table.check(name, "server", None if answer.status_code == 200 else answer.json()["error"]["message"])
