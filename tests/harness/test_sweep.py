"""A base and its deltas on the same tasks: each as if it ran alone, with one base in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from rich.console import Console

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.harness.sweep import delta_names, sweep, table
from tests.support.harness_tasks import ANSWER, TASKS, answers, apart, evaluated
from tests.support.server_fixtures import Artefacts

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from dqrelo_gguf.harness.resident import Resident

OTHER_BATCH = 0.05  # See test_model.py.


def test_each_model_answers_as_if_it_ran_alone(
    artefacts: Artefacts, manager: TaskManager, model_args: dict[str, Any], resident: Resident
) -> None:
    from dqrelo_gguf.harness import resident as module
    from dqrelo_gguf.harness.model import DqreloLM

    deltas = [artefacts.words, artefacts.json]
    with mock.patch.object(module, "Runtime", wraps=module.Runtime) as opened:
        results = sweep(artefacts.base, deltas, TASKS, model_args=model_args, task_manager=manager, bootstrap_iters=10)
    assert opened.call_count == 1
    assert list(results) == ["base", "words", "json"]
    for name, path in zip(results, [None, *deltas], strict=True):
        alone = DqreloLM(resident, path)
        assert max(apart(answers(results[name]), answers(evaluated(alone, manager))).values()) < OTHER_BATCH
        alone.close()

    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(results))
    lines = {line.split()[0]: line for line in captured.get().splitlines() if line.strip()}
    assert lines["task"].split() == ["task", "filter", "metric", "base", "words", "json"]
    for value in (results[name]["results"][ANSWER]["exact_match,none"] for name in results):
        assert f"{value:.4f}" in lines[ANSWER]


def test_names_of_deltas() -> None:
    assert delta_names([Path("a/x.dq.gguf"), Path("y.gguf")]) == ["x", "y.gguf"]
    assert delta_names([Path("a/x.dq.gguf"), Path("b/x.dq.gguf")]) == ["a/x.dq.gguf", "b/x.dq.gguf"]
    assert delta_names([Path("base.dq.gguf")]) == ["base.dq.gguf"]
    with pytest.raises(InputError, match=r"x\.dq\.gguf: is given twice"):
        delta_names([Path("x.dq.gguf")] * 2)


def test_all_deltas_are_checked_before_the_first_task(
    artefacts: Artefacts, narrow_deltas: list[Path], manager: TaskManager, model_args: dict[str, Any]
) -> None:
    import lm_eval

    with mock.patch.object(lm_eval, "simple_evaluate") as run, pytest.raises(InputError, match="base"):
        sweep(artefacts.base, [artefacts.words, narrow_deltas[0]], TASKS, model_args=model_args, task_manager=manager)
    assert not run.called
