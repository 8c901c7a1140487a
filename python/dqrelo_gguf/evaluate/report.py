"""What was measured, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dqrelo_gguf.errors import printable
from dqrelo_gguf.evaluate.answers import TaskResult
from dqrelo_gguf.evaluate.details import Details
from dqrelo_gguf.evaluate.measure import TextResult
from dqrelo_gguf.evaluate.retention import LEVEL, N_RESAMPLES, Interval, Retention, retention_of, score_interval
from dqrelo_gguf.evaluate.statistics import Mean, TextFigures, recovered
from dqrelo_gguf.evaluate.text import Text

if TYPE_CHECKING:
    from rich.table import Table


BASE, TUNED = "base", "fine-tune"  # names in a report


@dataclass
class Evaluation:
    """A measurement, whole or interrupted.

    Args:
        facts: software, machine, files, command.
        names: of the models that are compared: the base, its deltas, the rivals.
        seed: of everything that is drawn.
        n_ctx: tokens of a window.
        text: what was read, None where none was.
        text_result: figures of it.
        tasks: answers to problems.
        is_interrupted: not all that was asked for was measured.
        details: what a page shows beside the report; None where none was asked for.
    """

    facts: dict[str, Any]
    names: list[str]
    seed: int
    n_ctx: int
    text: Text | None = None
    text_result: TextResult = field(default_factory=TextResult)
    tasks: list[TaskResult] = field(default_factory=list)
    is_interrupted: bool = False
    details: Details | None = None

    def text_figures(self) -> tuple[Mean, list[TextFigures]] | None:
        """The fine-tune's perplexity and the figures of each model, None where no window was read."""
        return self.text_result.figures() if self.text_result.n_windows > 0 else None

    def answered(self) -> list[TaskResult]:
        """Tasks of which problems were answered."""
        return [task for task in self.tasks if task.n_answered > 0]

    def retentions(self) -> list[Retention | None]:
        """Of each delta and rival, over all answered tasks."""
        tasks = [task.hits() for task in self.answered()]
        if not tasks:
            return []
        return [retention_of([hits[k] for hits in tasks], self.seed) for k in range(len(self.names) - 1)]

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            **self.facts,
            "seed": self.seed,
            "interrupted": self.is_interrupted,
            "text": self._text_json(),
            "problems": self._problems_json(),
        }

    def _text_json(self) -> dict[str, Any] | None:
        figures = self.text_figures()
        if self.text is None or figures is None:
            return None
        tuned_ppl, models = figures
        return {
            "name": self.text.name,
            "sha256": self.text.sha256,
            "n_ctx": self.n_ctx,
            "n_windows": self.text_result.n_windows,
            "n_windows_all": len(self.text.windows),
            "n_tokens": self.text_result.n_scored,
            "n_cut": self.text.n_cut,
            "ppl_tuned": asdict(tuned_ppl),
            "models": [
                {"name": name, **asdict(f), "recovered": recovered(f, models[0])}
                for name, f in zip(self.names, models, strict=True)
            ],
        }

    def _problems_json(self) -> dict[str, Any] | None:
        tasks = self.answered()
        if not tasks:
            return None
        retentions = self.retentions()
        return {
            "level": LEVEL,
            "n_resamples": N_RESAMPLES,
            "tasks": [self._task_json(task) for task in tasks],
            "deltas": [
                {"name": name, **({"retention": None, "drop": None} if r is None else asdict(r))}
                for name, r in zip(self.names[1:], retentions, strict=True)
            ],
        }

    def _task_json(self, task: TaskResult) -> dict[str, Any]:
        file, n = task.task.file, task.n_answered
        scores = [(TUNED, task.tuned_hits(), n), *zip(self.names, task.model_hits(), task.n_same(), strict=True)]
        return {
            "name": file.name,
            "sha256": file.sha256,
            "n_problems": n,
            "n_problems_all": len(file.problems),
            "scores": [
                {
                    "name": name,
                    "n_right": int(hits.sum()),
                    "score": asdict(score_interval(hits, self.seed)),
                    "n_same": same,
                    "right": hits.tolist(),
                }
                for name, hits, same in scores
            ],
        }


# --- for people ---


def summary(evaluation: Evaluation) -> list[str]:
    """The lines above the tables."""
    facts, text, result = evaluation.facts, evaluation.text, evaluation.text_result
    commit = f", commit {facts['commit']}" if facts["commit"] else ""
    lines = [f"{facts['program']}{commit}, llama.cpp {facts['llama_cpp_commit']}, seed {evaluation.seed}"]
    if text is not None:
        lines.append(
            f"text: {printable(text.name)}, SHA-256 {text.sha256}, {result.n_scored} of {text.n_scored} tokens, "
            f"{result.n_windows} of {len(text.windows)} windows of up to {evaluation.n_ctx}"
        )
    figures = evaluation.text_figures()
    if figures is not None:
        lines.append(f"perplexity of the fine-tune: {_mean(figures[0], 4)}")
    for task in evaluation.tasks:
        file = task.task.file
        lines.append(
            f"problems: {printable(file.name)}, SHA-256 {file.sha256}, {task.n_answered} of {len(file.problems)} answered"
        )
    return lines


def text_table(evaluation: Evaluation) -> Table | None:
    """The figures on text: a row a figure, under llama-perplexity's names, a column a model."""
    figures = evaluation.text_figures()
    if figures is None:
        return None
    _, models = figures
    table = _table(["", *map(printable, evaluation.names)])
    rows: list[tuple[str, list[str]]] = [
        ("Mean    KLD", [_mean(m.kl, 6) for m in models]),
        ("Maximum KLD", [f"{m.kl_max:.6f}" for m in models]),
        *(
            (f"{float(p):.1f}%   KLD", [f"{m.kl_percentiles[p]:.6f}" for m in models])
            for p in ("99.9", "99", "95", "90")
        ),
        ("Median  KLD", [f"{m.kl_median:.6f}" for m in models]),
        ("recovered", [_percent(recovered(m, models[0])) for m in models]),
        ("Same top p", [_percent_mean(m.same_top) for m in models]),
        ("Mean    Δp", [_percent_mean(m.dp_mean) for m in models]),
        ("RMS Δp", [_percent_mean(m.dp_rms) for m in models]),
        ("PPL", [_mean(m.ppl, 4) for m in models]),
        ("ln PPL ratio", [_mean(m.log_ppl_ratio, 6) for m in models]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def problems_table(evaluation: Evaluation) -> Table | None:
    """Right answers of each task, and what each delta keeps: a row a model, a column a task."""
    tasks = evaluation.answered()
    if not tasks:
        return None
    table = _table(["", *(f"{printable(t.task.file.name)} ({t.n_answered})" for t in tasks), "retention", "drop"])
    columns = [[t.tuned_hits(), *t.model_hits()] for t in tasks]
    kept = [("", ""), ("", ""), *map(_kept, evaluation.retentions())]
    for k, name in enumerate([TUNED, *evaluation.names]):
        scores = [_percent_interval(score_interval(hits[k], evaluation.seed)) for hits in columns]
        table.add_row(printable(name), *scores, *kept[k])
    return table


def _table(head: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _kept(retention: Retention | None) -> tuple[str, str]:
    if retention is None:
        return "no gain", ""
    return _percent_interval(retention.retention), _percent_interval(retention.drop)


def _mean(mean: Mean, places: int) -> str:
    return f"{mean.value:.{places}f} ± {mean.error:.{places}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _percent_mean(mean: Mean) -> str:
    return f"{100 * mean.value:.3f} ± {100 * mean.error:.3f} %"


def _percent_interval(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
