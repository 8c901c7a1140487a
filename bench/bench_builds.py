"""Is one build as fast as another on this machine, for instance the portable wheel as a native build?

Each build is an installed environment, given by its Python. dqrelo-bench of each runs in turns, in a process of its own: the first, the
second, the second, the first, and so on, so that what slows the machine for a while slows both. Of every row (a prompt or a generation,
of the base or of a delta) a round gives one ratio, the second build's tokens a second over the first's.

  bench_builds.py --build native=NATIVE/bin/python --build wheel=WHEEL/bin/python -- -m base.gguf --delta math.dq.gguf -p 64 -n 32 -t 2

Arguments behind `--` are dqrelo-bench's. The interval holds the median of all rounds that could be run, with 95 %; it is made of two of
the measured ratios and supposes nothing of how they are spread. Exit code 0 if it lies above 1 - BOUND in every row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from support.machine import commit, cpu, heading

CONFIDENCE = 0.95
MIN_ROUNDS = 6  # With fewer, not even the lowest and the highest ratio are far enough apart for 95 %.
# They would lead an installed package to another one's parts.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "DQRELO_CORE_DIR", "DQRELO_BIN_DIR", "DQRELO_LLAMA_CPP_DIR")


@dataclass(frozen=True)
class Build:
    """An environment that has the package, and what the report calls it."""

    name: str
    python: Path

    def measure(self, words: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of one run of its dqrelo-bench.

        Raises:
            InputError: the command failed.
        """
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        # -P: the working directory may have a folder of the package's name.
        command = [self.python, "-P", "-m", "dqrelo_gguf.cli.bench", *words, "-o", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InputError(f"--build {self.name}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@dataclass(frozen=True)
class Comparison:
    """A row of the report.

    Args:
        test: what was decoded, and with which deltas.
        speeds: tokens a second of both builds, one number a round.
        low, high: bounds of the median ratio.
    """

    test: str
    speeds: tuple[Sequence[float], Sequence[float]]
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return median(_ratios(*self.speeds))

    def verdict(self, bound: float) -> str:
        """Whether the second build is at most `bound` slower."""
        if self.low >= 1 - bound:
            return "yes"
        return "no" if self.high < 1 - bound else "unclear"


def _ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [b / a for a, b in zip(first, second, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median of what `values` were drawn from: as many of the lowest and of the highest are left out as 95 % allow.

    The median lies below the k-th lowest of n values if fewer than k of them lie below it, which has the probability
    sum over i < k of (n choose i) / 2^n; above the k-th highest likewise.
    """
    n, ordered = len(values), sorted(values)
    k, outside = 0, 0.0
    while outside <= (1 - CONFIDENCE) / 2:
        k += 1
        outside = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return ordered[k - 1], ordered[n - k]


def key_of(row: Mapping[str, Any]) -> str:
    """What a row measures, as the report names it."""
    prompt, generated = (f"{name}{n}" if n else "" for name, n in (("pp", row["n_prompt"]), ("tg", row["n_gen"])))
    streams = f" x{row['n_streams']}" if row["n_streams"] > 1 else ""
    test = "+".join(filter(None, (prompt, generated)))
    return f"{test}{streams}, {' and '.join(row['deltas']) or 'base alone'}, {row['n_threads']} threads"


def measure(builds: Sequence[Build], words: Sequence[str], n_rounds: int) -> list[list[list[dict[str, Any]]]]:
    """The rows of every round, by build. The first run of each only fills the caches."""
    for build in builds:
        build.measure(words)
    rounds: list[list[list[dict[str, Any]]]] = []
    for k in range(n_rounds):
        rows: list[list[dict[str, Any]]] = [[] for _ in builds]
        for i in range(len(builds)) if k % 2 == 0 else reversed(range(len(builds))):
            print(f"round {k + 1} of {n_rounds}: {builds[i].name} ...", file=sys.stderr, flush=True)
            rows[i] = builds[i].measure(words)
        rounds.append(rows)
    return rounds


def compare(rounds: Sequence[Sequence[Sequence[Mapping[str, Any]]]]) -> list[Comparison]:
    """A row for each test.

    Raises:
        InputError: the builds did not measure the same.
    """
    tests = [[key_of(row) for row in rows] for both in rounds for rows in both]
    if any(one != other for one, other in pairwise(tests)) or len(set(tests[0])) != len(tests[0]):
        raise InputError("the builds' rows differ, or two of them have one name: give each test once")
    found = []
    for i, test in enumerate(tests[0]):
        first, second = ([float(both[j][i]["median_ts"]) for both in rounds] for j in (0, 1))
        found.append(Comparison(test, (first, second), *interval(_ratios(first, second))))
    return found


def table(builds: Sequence[Build], rows: Sequence[Comparison], bound: float) -> str:
    """Median (lowest to highest) of each build, and the ratio with its interval."""
    names = " | ".join(f"{build.name}, t/s" for build in builds)
    lines = [f"| test | {names} | ratio | 95 % of it | within {bound:.0%} |", "|---|---|---|---|---|---|"]
    for row in rows:
        speeds = " | ".join(f"{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in row.speeds)
        lines.append(
            f"| {row.test} | {speeds} | {row.ratio:.3f} | {row.low:.3f} to {row.high:.3f} | {row.verdict(bound)} |"
        )
    return "\n".join(lines)


def builds_of(texts: Sequence[str]) -> tuple[Build, Build]:
    """The two of --build.

    Raises:
        InputError: they are not two, or there is no such Python.
    """
    builds = []
    for text in texts:
        name, separator, path = text.partition("=")
        # A virtual environment's Python is a symbolic link: what it leads to knows nothing of the environment.
        python = Path(path).absolute()
        if not separator or not name or not os.access(python, os.X_OK) or python.is_dir():
            raise InputError(f"--build {text}: expected NAME=PYTHON, the Python of an environment with the package")
        builds.append(Build(name, python))
    if len(builds) != 2 or builds[0].name == builds[1].name:
        raise InputError(f"--build: given {len(builds)} times, expected two of different names: the reference first")
    return builds[0], builds[1]


def bench(args: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    builds = builds_of(args.build)
    if args.rounds < MIN_ROUNDS:
        raise InputError(f"--rounds {args.rounds}: expected at least {MIN_ROUNDS}")
    words = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    rounds = measure(builds, words, args.rounds)
    rows = compare(rounds)
    if args.output == "json":
        print(json.dumps({"builds": [build.name for build in builds], "rounds": rounds}, indent=1))
    else:
        facts = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "commit": commit(),
            "cpu": cpu(),
            "rounds": args.rounds,
        }
        for build, measured in zip(builds, rounds[0], strict=True):
            facts[build.name] = ", ".join(
                f"{name} {measured[0][name]}" for name in ("dqrelo_version", "build_commit", "isa", "backends")
            )
        print(heading(facts), table(builds, rows, args.within), sep="\n\n")
    return 0 if all(row.verdict(args.within) == "yes" for row in rows) else 1


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--build", action="append", default=[], metavar="NAME=PYTHON", help="give two; the first is the reference"
    )
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="runs of each build (default: %(default)s)")
    parser.add_argument(
        "--within", type=float, default=0.03, metavar="BOUND", help="how much slower it may be (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", choices=("md", "json"), default="md", help="(default: %(default)s)")
    parser.add_argument("arguments", nargs="*", help="behind --: of dqrelo-bench")
    args = parser.parse_args()
    return run(lambda: bench(args), "bench_builds.py")


if __name__ == "__main__":
    sys.exit(main())
