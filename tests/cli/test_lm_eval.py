"""dqrelo-lm-eval: lm-evaluation-harness's own command with our model in it, and a table of several models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dqrelo_gguf.cli import lm_eval as command
from tests.support.harness_tasks import ANSWER, CHOICE, offline, write_tasks
from tests.support.server_fixtures import Artefacts


@pytest.fixture(scope="module", autouse=True)
def _no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offline(tmp_path_factory.mktemp("datasets")):
        yield


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from lm_eval.tasks import TaskManager

    whole = TaskManager.__init__
    # It would read the thousands of tasks that come with it.
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **options: whole(self, **options, include_defaults=False))
    monkeypatch.setattr(sys, "argv", [])  # The harness reads it.
    return write_tasks(tmp_path / "tasks")


def test_the_harness_runs_with_a_delta(tasks: Path, artefacts: Artefacts, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"base={artefacts.base},delta={artefacts.words},n_threads=1,n_ctx=128"
    own = ["--model", "dqrelo", "--model_args", args, "--tasks", str(tasks / f"{ANSWER}.yaml"), "--batch_size", "auto"]
    assert command.main([*own, "--output_path", str(tasks / "out"), "--log_samples"]) == 0
    assert f"|{ANSWER}|" in capsys.readouterr().out
    (file,) = (tasks / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["delta_content_hash"]


def test_a_sweep_prints_one_table(tasks: Path, artefacts: Artefacts, capsys: pytest.CaptureFixture[str]) -> None:
    out = tasks / "sweep.json"
    models = [str(artefacts.base), "--delta", str(artefacts.words), "--delta", str(artefacts.json)]
    options = ["--include_path", str(tasks), "--tasks", f"{CHOICE},{ANSWER}", "--limit", "2"]
    more = ["--model_args", "n_threads=1,n_ctx=128", "--json", str(out)]
    assert command.main(["sweep", *models, *options, *more]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["task", "filter", "metric", "base", "words", "json"] in lines
    assert {line[0] for line in lines} >= {CHOICE, ANSWER}
    report = json.loads(out.read_text())
    assert list(report) == ["base", "words", "json"]
    assert "samples" not in report["words"]


def test_a_mistake_is_one_line(tasks: Path, artefacts: Artefacts, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--tasks", str(tasks / f"{ANSWER}.yaml")]
    assert command.main(["--model", "dqrelo", "--model_args", "base=nowhere.gguf", *task]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dqrelo-lm-eval: error: nowhere.gguf: ")
    assert command.main(["sweep", str(artefacts.base), "--delta", "nowhere.dq.gguf", *task]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dqrelo-lm-eval: error: nowhere.dq.gguf: ")


@pytest.mark.parametrize("args", [[], ["sweep", "base.gguf", "--tasks", "x"]])
def test_a_missing_harness_is_one_line(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dqrelo_gguf.harness.package.find_spec", lambda _: None)
    assert command.main(args) == 1
    assert capsys.readouterr().err == (
        "dqrelo-lm-eval: error: lm_eval: lm-evaluation-harness is not installed. Run: pip install 'dqrelo-gguf[lm-eval]'\n"
    )
