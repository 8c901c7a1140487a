"""The same tasks for a base and several deltas of it, with the base in memory once; and one table of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqrelo_gguf.errors import InputError, shown
from dqrelo_gguf.harness.arguments import Arguments
from dqrelo_gguf.harness.package import require

if TYPE_CHECKING:
    from rich.table import Table

BASE = "base"
_SUFFIX = ".dq.gguf"

Results = dict[str, dict[str, Any]]
"""What lm_eval.simple_evaluate returns, by the name of the model."""


def sweep(
    base: Path,
    deltas: Sequence[Path],
    tasks: Sequence[Any],
    *,
    model_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Results:
    """Evaluates a base and its deltas on tasks of lm-evaluation-harness.

    Args:
        base: the base GGUF.
        deltas: files of its deltas. All are loaded before the first task begins.
        tasks: names, paths or objects of tasks, as lm_eval.simple_evaluate takes them.
        model_args: what --model_args takes besides base and delta, and `batch_size`.
        options: of lm_eval.simple_evaluate: num_fewshot, limit, apply_chat_template, task_manager, ...

    Returns:
        What lm_eval.simple_evaluate returns for each: first "base", then the deltas by their files' names.

    Raises:
        InputError: a file or an argument cannot be used, or lm-evaluation-harness is not installed.
    """
    require()
    from lm_eval import simple_evaluate

    from dqrelo_gguf.harness.model import DqreloLM
    from dqrelo_gguf.harness.resident import Resident

    names = delta_names(deltas)
    with Resident(Arguments.read({**(model_args or {}), "base": base})) as resident:
        models = {BASE: DqreloLM(resident)}
        models |= {name: DqreloLM(resident, path) for name, path in zip(names, deltas, strict=True)}
        try:
            return {name: simple_evaluate(model=model, tasks=list(tasks), **options) for name, model in models.items()}
        finally:
            for model in models.values():
                model.close()


def delta_names(deltas: Sequence[Path]) -> list[str]:
    """What a table calls deltas: their files' names without the suffix, or their paths where names would meet.

    Raises:
        InputError: the same file twice.
    """
    names = [path.name.removesuffix(_SUFFIX) for path in deltas]
    count = Counter([BASE, *names])
    names = [name if count[name] == 1 else str(path) for name, path in zip(names, deltas, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: is given twice, expected each delta once")
    return names


def table(results: Results) -> Table:
    """A row a figure of a task, a column a model."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE, title="lm-evaluation-harness", title_justify="left")
    for heading in ("task", "filter", "metric"):
        out.add_column(heading)
    for name in results:
        out.add_column(Text(shown(name)), justify="right")
    first = next(iter(results.values()))["results"]
    for task, figures in first.items():
        for key in figures:
            metric, comma, of_filter = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                values = [_cell(result["results"].get(task, {}), metric, of_filter) for result in results.values()]
                out.add_row(*map(Text, (shown(task), shown(of_filter), shown(metric), *values)))
    return out


def _cell(figures: Mapping[str, Any], metric: str, of_filter: str) -> str:
    value, error = figures.get(f"{metric},{of_filter}"), figures.get(f"{metric}_stderr,{of_filter}")
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text} ± {error:.4f}" if isinstance(error, float) else text
