"""What a delta keeps of its fine-tune, for each method and size, and what rivals of the same size keep.

For every fine-tune: fresh problems of its task are made from a seed; the fine-tune's probabilities and answers on them are
what everything is measured against. Candidates are the converter's deltas (best, best-probe, paper; best-self and best-text calibrated), rivals of equal bytes
(svd, lora, delta-come; support/rivals.py), and the fine-tune itself in few bits (Q3_K_M, Q2_K, IQ2_XXS: those are not
relative to the base). All are merged to plain GGUFs and run in the same way.

  bench_quality.py --base base/ --tuned words=ft-words/ --tuned math=ft-math.gguf --ratio 1/8 --ratio 1/16 --json rows.json

A fine-tune's name is its task: math, json or words. Prints tables for each fine-tune; each candidate is told on stderr as
soon as it is measured, and --json has all figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from dqrelo_gguf.cli import run
from dqrelo_gguf.compress.budget import parse_ratio
from dqrelo_gguf.errors import InputError
from support import rivals
from support.candidates import (
    BASE,
    CALIBRATED,
    CONVERTED,
    SMALL_TYPES,
    Candidate,
    Workshop,
    error_of,
    methods,
    n_elements,
)
from support.kept import Yardstick
from support.pair import add_models, add_problems, facts, fine_tunes, new_problems, note
from support.quality_row import Row
from support.quality_table import cell, tables

DEFAULT_RATIOS = ["1/8", "1/13", "1/16"]
# Problems for importance matrices and calibrations, and what is added to the seed: others than those that are measured.
OTHER_PROBLEMS, OTHER_SEED = 200, 1000


class Bench:
    """The measurement, from the command line's arguments; `work` is the folder of its files."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.workshop = Workshop(work, arguments.threads)
        plain = self.workshop.plain(arguments.base)
        quantise = arguments.base_type != "F16"
        self.base = self.workshop.quantised(plain, arguments.base_type) if quantise else plain

    def rows(self, task: str, tuned_path: Path) -> Iterator[Row]:
        """A row for each candidate of a fine-tune, as soon as it is measured."""
        arguments = self.arguments
        tuned = self.workshop.plain(tuned_path)
        problems = new_problems(arguments, task, arguments.problems, arguments.seed)
        with contextlib.closing(Yardstick(tuned, problems, arguments.threads)) as yardstick:
            size = 2 * n_elements(tuned)
            for method, asked, candidate in self._candidates(task, tuned):
                error = error_of(self.base, tuned, candidate.path, arguments.threads)
                kept = yardstick.measure(candidate.path)
                yield Row(
                    task,
                    arguments.base_type,
                    method,
                    asked,
                    candidate.n_bytes / size,
                    candidate.n_bytes,
                    error,
                    kept,
                    len(problems),
                    yardstick.right,
                    candidate.seconds,
                )

    def _candidates(self, task: str, tuned: Path) -> Iterator[tuple[str, str | None, Candidate]]:
        """Method, ratio and candidate; what a method cannot make is said and left out."""
        chosen = self.arguments.method or list(methods())
        if BASE in chosen:
            yield BASE, None, Candidate(self.base, 0, 0.0)
        texts = new_problems(self.arguments, task, OTHER_PROBLEMS, self.arguments.seed + OTHER_SEED)
        for type_name in (m for m in chosen if m in SMALL_TYPES):
            yield type_name, None, self.workshop.small(tuned, type_name, texts)
        for text in self.arguments.ratio or DEFAULT_RATIOS:
            for method in (m for m in chosen if m in CONVERTED or m in CALIBRATED or m in rivals.METHODS):
                make = self.workshop.converted if method in CONVERTED else self.workshop.rival
                if method in CALIBRATED:
                    make = partial(self.workshop.calibrated, texts=texts)
                try:
                    candidate = make(self.base, tuned, method, parse_ratio(text))
                except InputError as e:
                    note(f"{task} {method} {text}: {e}")
                    continue
                yield method, text, candidate


def bench(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    tuned, about = fine_tunes(arguments), facts(arguments)
    for key, value in about.items():
        note(f"{key}: {value}")
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        measurement = Bench(arguments, work)
        for task, path in tuned.items():
            begun, done = time.monotonic(), len(rows)
            for row in measurement.rows(task, Path(path)):
                size = row.asked or f"{row.ratio:.3f}"
                note(f"{task} {row.method} {size}: error of D {row.error:.3f}, {cell(row.kept)}")
                rows.append(row)
                if arguments.json:
                    report = {**about, "rows": [asdict(r) for r in rows]}
                    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(f"{tables(rows[done:])}\n", flush=True)
            note(f"{task}: {time.monotonic() - begun:.0f} s")


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument(
        "--base-type", default="F16", metavar="TYPE", help="quantise the base to this type first (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio",
        action="append",
        metavar="R",
        help=f"of the deltas; repeatable (default: {', '.join(DEFAULT_RATIOS)})",
    )
    parser.add_argument("--method", action="append", choices=list(methods()), help="repeatable (default: all of them)")
    add_problems(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all rows to FILE, after each row")
    parser.add_argument("--work", type=Path, help="keep the models here (default: a temporary folder)")
    arguments = parser.parse_args()
    return run(lambda: bench(arguments), "bench_quality.py")


if __name__ == "__main__":
    sys.exit(main())
