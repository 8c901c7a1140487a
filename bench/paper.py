"""The paper's studies with our own tools: what each conversion keeps of fine-tunes, and the paper's figures beside ours.

  paper.py --base base/ --tuned math=ft-math/ --tuned words=ft-words/ --json paper.json > tables.md

A fine-tune's name is its task: math, json or words; fresh problems of it are made from a seed. Of every fine-tune all conversions
(support/paper_studies.py) are made by dqrelo-convert and measured in one run of dqrelo-eval: on conversations of the task, question and
right answer, and on the problems. Pruned deltas, which no delta file holds, are merged models. --json has everything; a fine-tune
that it holds already is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dqrelo_gguf.cli import convert, inspect, run
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.job import Job, evaluate
from dqrelo_gguf.progress import phases_for_stderr
from support.candidates import Workshop
from support.pair import add_models, add_problems, facts, fine_tunes, new_problems, note
from support.paper_studies import STUDIES, Entry
from support.paper_tables import LEGEND, measured, statistics_table, study_table, unique, zero
from support.problems import Problem, final_answer

MAX_TOKENS = 96  # of an answer


class Paper:
    """The measurement of one pair after the other; `work` is the folder of its files."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.workshop = Workshop(work, arguments.threads)
        self.base = self.workshop.plain(arguments.base)
        self.entries = unique(STUDIES[name] for name in arguments.study)

    def measure(self, task: str, path: Path) -> dict[str, Any]:
        """Everything about one fine-tune, by entry."""
        tuned = self.workshop.plain(path)
        made = {entry.key: self._converted(entry, tuned) for entry in self.entries}
        made = {key: report for key, report in made.items() if report is not None}
        outfiles = {key: Path(report["outfile"]) for key, report in made.items()}
        problems = new_problems(self.arguments, task, self.arguments.problems, self.arguments.seed)
        job = Job(
            self.base,
            tuned,
            tuple(p for p in outfiles.values() if p.name.endswith(".dq.gguf")),
            text=str(self._conversations(task, problems)),
            problems=(self._problem_file(task, problems),),
            max_tokens=MAX_TOKENS,
            seed=self.arguments.seed,
            n_threads=self.arguments.threads,
            models=tuple(p for p in outfiles.values() if not p.name.endswith(".dq.gguf")),
        )
        evaluation = evaluate(job, " ".join(sys.argv), phases_for_stderr, note)
        if evaluation.is_interrupted:
            raise KeyboardInterrupt
        return {"report": evaluation.as_json(), "converted": made, "statistics": self._statistics(tuned)}

    def _converted(self, entry: Entry, tuned: Path) -> dict[str, Any] | None:
        """The converter's report; None where it cannot make this one, which is said."""
        is_merged = METHODS[entry.method].keeps is not None  # No delta file holds what it makes.
        out, report = self.work / f"{entry.key}{'.gguf' if is_merged else '.dq.gguf'}", self.work / "report.json"
        files = [self.base, tuned, "-o", out, "--json", report, "--force", "-t", self.arguments.threads]
        name = [] if is_merged else ["--name", entry.key]
        problem = said_by(convert.main, [*files, *self._options(entry, tuned), *name])
        if problem:
            note(f"{entry.key}: {problem}")
            return None
        document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return {**{key: document[key] for key in ("ratio", "n_bytes", "seconds")}, "outfile": str(out)}

    def _options(self, entry: Entry, tuned: Path) -> list[object]:
        """An entry's; what is calibrated shares one measurement of a fine-tune."""
        if not entry.is_calibrated:
            return [*entry.options]
        moments = self.work / f"{tuned.stem}.safetensors"
        if moments.exists():
            return [*entry.options, "--calibration", moments]
        return [*entry.options, "--calibrate", "self", "--save-calibration", moments]

    def _statistics(self, tuned: Path) -> dict[str, Any]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = inspect.main(["--stats", str(self.base), str(tuned), "--json"])
        if code != 0:
            raise InputError(f"{tuned}: has no statistics")
        total: dict[str, Any] = json.loads(said.getvalue())["all"]
        return total

    def _problem_file(self, task: str, problems: Iterable[Problem]) -> Path:
        compare = "number" if task == "math" else "exact"
        rows = ({"prompt": p.prompt, "answer": final_answer(task, p.answer), "compare": compare} for p in problems)
        return self._lines(f"{task}.jsonl", rows)

    def _conversations(self, task: str, problems: Iterable[Problem]) -> Path:
        rows = (
            {"messages": [{"role": "user", "content": p.question}, {"role": "assistant", "content": p.answer}]}
            for p in problems
        )
        return self._lines(f"{task}-conversations.jsonl", rows)

    def _lines(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        path = self.work / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def bench(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    tuned = fine_tunes(arguments)
    found: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))["fine_tunes"]
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        paper = Paper(arguments, work)
        for task in (t for t in tuned if t not in found):
            begun = time.monotonic()
            found[task] = paper.measure(task, Path(tuned[task]))
            note(f"{task}: {time.monotonic() - begun:.0f} s")
            if arguments.json:
                arguments.json.write_text(
                    json.dumps({**facts(arguments), "fine_tunes": found}, indent=1) + "\n", encoding="utf-8"
                )
    print(tables(found, arguments.study))


def tables(found: dict[str, Any], studies: Iterable[str]) -> str:
    """All tables as Markdown, from what `Paper.measure` gave."""
    rows = {
        task: {key: measured(one["report"], key, made) for key, made in one["converted"].items()}
        for task, one in found.items()
    }
    zeros = {task: zero(one["report"]) for task, one in found.items()}
    parts = [statistics_table({task: one["statistics"] for task, one in found.items()}), LEGEND]
    return "\n\n".join([*parts, *(study_table(STUDIES[name], rows, zeros) for name in studies)])


def said_by(main: Callable[[list[str]], int], arguments: Iterable[object]) -> str:
    """Runs a command; "" if it ends well, or else the last line that it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = main([str(x) for x in arguments])
        except SystemExit:  # argparse
            code = 2
    return "" if code == 0 else said.getvalue().splitlines()[-1]


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--study", action="append", choices=list(STUDIES), help="repeatable (default: all of them)")
    add_problems(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep all figures in FILE, and go on with what it has"
    )
    parser.add_argument("--work", type=Path, help="keep the models here (default: a temporary folder)")
    arguments = parser.parse_args()
    arguments.study = arguments.study or list(STUDIES)
    return run(lambda: bench(arguments), "paper.py")


if __name__ == "__main__":
    sys.exit(main())
