"""dqrelo-demo: the example that comes with the package, and how a step fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dqrelo_gguf.cli import demo
from dqrelo_gguf.demo.pair import example
from dqrelo_gguf.demo.steps import command, run_step
from dqrelo_gguf.demo.tables import QUESTIONS
from dqrelo_gguf.errors import CommandError
from tests.support.programs import need_program


def test_the_example_converts_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_program("llama-server")
    monkeypatch.setenv("COLUMNS", "200")  # No answer is folded.
    assert demo.main(["--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert {"base.gguf", "words.dq.gguf", "json.dq.gguf", "server.log"} <= {file.name for file in tmp_path.iterdir()}
    assert '"name": "Amy"' in out, "the fine-tune json answers in JSON"
    assert "time of these answers" in out


def test_the_example_is_there_with_questions() -> None:
    assert (example() / "base" / "model.safetensors").is_file()
    assert len(list(example().glob("ft-*"))) == 2
    assert QUESTIONS


def test_a_folder_without_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--pair", str(tmp_path), "--work", str(tmp_path / "work")]) == 1
    assert capsys.readouterr().err == (
        f"dqrelo-demo: error: {tmp_path}: has no base/ and ft-*/, expected a base and its fine-tunes, a folder for each\n"
    )


def test_a_step_that_fails_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "words.log"
    with pytest.raises(
        CommandError, match=r"^words: failed with exit code 3: the reason \(--work DIR keeps words\.log\)$"
    ):
        run_step(log, sys.executable, "-c", "import sys; print('before'); print('the reason'); sys.exit(3)")
    assert log.read_text().startswith("before")


def test_commands_import_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit(99)\n")
    monkeypatch.chdir(tmp_path)
    run_step(tmp_path / "help.log", *command("inspect"), "--help")
