"""The tables of paper.py: a row a conversion, a column a fine-tune, and the paper's own figure beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from support.paper_studies import Entry, Study


@dataclass(frozen=True)
class Measured:
    """What was found of a conversion of a fine-tune.

    Args:
        ratio: charged bytes to those of all weights in 16 bits.
        n_bytes: charged.
        kl: KL(fine-tune || delta) on conversations of the task, a mean and its standard error over windows.
        top_p: share of tokens with the same most probable one.
        n_right: problems.
        retention: of the fine-tune's gain on the problems, with its interval; None where there is no gain.
    """

    ratio: float
    n_bytes: int
    kl: tuple[float, float]
    top_p: float
    n_right: int
    retention: tuple[float, float, float] | None


@dataclass(frozen=True)
class Zero:
    """The ends of the way: the base and the fine-tune on the same text and problems."""

    kl: float
    n_right_base: int
    n_right_tuned: int
    n_problems: int


def measured(report: Mapping[str, Any], name: str, converted: Mapping[str, Any]) -> Measured:
    """A conversion's figures from the reports of dqrelo-eval and dqrelo-convert."""
    text = _named(report["text"]["models"], name)
    kept = _named(report["problems"]["deltas"], name)["retention"]
    score = _named(report["problems"]["tasks"][0]["scores"], name)
    return Measured(
        converted["ratio"],
        converted["n_bytes"],
        (text["kl"]["value"], text["kl_window_error"]),
        text["same_top"]["value"],
        score["n_right"],
        None if kept is None else (kept["value"], kept["low"], kept["high"]),
    )


def zero(report: Mapping[str, Any]) -> Zero:
    """The zero line of a report."""
    task = report["problems"]["tasks"][0]
    base, tuned = (_named(task["scores"], name)["n_right"] for name in ("base", "fine-tune"))
    return Zero(_named(report["text"]["models"], "base")["kl"]["value"], base, tuned, task["n_problems"])


def _named(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next(row for row in rows if row["name"] == name)


def study_table(study: Study, found: Mapping[str, Mapping[str, Measured]], zeros: Mapping[str, Zero]) -> str:
    """A study as Markdown.

    Args:
        study: what is compared.
        found: of each fine-tune, what was measured of each entry's key.
        zeros: of each fine-tune, its zero line.
    """
    tasks = list(found)
    extra = [study.paper] if study.paper else []
    head = ["", *(_head(task, zeros[task]) for task in tasks), "mean drop %", *extra]
    lines = [head, ["---"] * len(head)]
    for entry in study.entries:
        of_tasks = [found[task].get(entry.key) for task in tasks]
        own = [] if not study.paper else ["" if entry.paper is None else f"{entry.paper:.2f}"]
        lines.append([entry.label, *map(_cell, of_tasks), _mean_drop(of_tasks), *own])
    return f"### {study.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(task: str, ends: Zero) -> str:
    return f"{task} (base KL {ends.kl:.2f}, {ends.n_right_base} right; fine-tune {ends.n_right_tuned} of {ends.n_problems})"


def _cell(row: Measured | None) -> str:
    """Ratio; KL; same top p; right answers; retention."""
    if row is None:
        return "-"
    kept = (
        "no gain" if row.retention is None else "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * x for x in row.retention))
    )
    return f"{row.ratio:.4f}; {_two(row.kl[0])} ± {_two(row.kl[1])}; {100 * row.top_p:.1f} %; {row.n_right}; {kept}"


def _two(value: float) -> str:
    """Two figures."""
    return f"{value:.2g}"


def _mean_drop(rows: Sequence[Measured | None]) -> str:
    drops = [100 * (1 - row.retention[0]) for row in rows if row is not None and row.retention is not None]
    return f"{mean(drops):.1f}" if len(drops) == len(rows) else "-"


def statistics_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Table 1: a row a fine-tune, of all its matrices together."""
    head = ["", "mean magnitude", "mean singular value", "entropy"]
    lines = [head, ["---"] * len(head)]
    for task, stats in found.items():
        lines.append([task, *(f"{stats[key]:.3g}" for key in ("magnitude", "singular_value", "entropy"))])
    return "### Statistics of the deltas (Table 1)\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


LEGEND = (
    "A cell: bytes to those of the weights in 16 bits; KL(fine-tune || delta) in nats ± standard error over the tokens of the task's "
    "conversations; same top p; right answers; retention (95 %)."
)


def unique(studies: Iterable[Study]) -> list[Entry]:
    """Every conversion once."""
    return list({entry.key: entry for study in studies for entry in study.entries}.values())
