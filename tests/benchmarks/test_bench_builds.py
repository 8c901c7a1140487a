"""bench/bench_builds.py: two builds in turns, and what may be said about the second one's speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError

# A "Python" that notes who ran, with what, and prints rows as dqrelo-bench does.
SCRIPT = """#!/bin/sh
echo "{name} $* core=$DQRELO_CORE_DIR path=$PYTHONPATH" >> {log}
cat {rows}
"""


def row(median_ts: float, deltas: list[str], n_prompt: int = 64, n_gen: int = 0) -> dict[str, object]:
    """What the program reads of a row."""
    return {
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_streams": 1,
        "n_threads": 2,
        "deltas": deltas,
        "median_ts": median_ts,
        "dqrelo_version": "1",
        "build_commit": "c",
        "isa": "avx2",
        "backends": "CPU",
    }


@pytest.fixture
def environment(tmp_path: Path) -> Callable[..., str]:
    """Makes the Python of an environment that measures these rows; returns what --build is given."""

    def make(name: str, *rows: dict[str, object], status: int = 0) -> str:
        path, measured = tmp_path / name, tmp_path / f"{name}.json"
        measured.write_text(json.dumps(rows))
        text = SCRIPT.format(name=name, log=tmp_path / "log", rows=measured)
        path.write_text(text if status == 0 else f"#!/bin/sh\necho a page >&2\necho the reason >&2\nexit {status}\n")
        path.chmod(0o755)
        return f"{name}={path}"

    return make


def run_program(bench_module, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_builds.py", *words])
    code: int = bench_module("bench_builds").main()
    return code


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6)])
def test_the_interval_is_that_of_the_sign_test(bench_module, n: int, rank: int) -> None:
    values = list(np.random.default_rng(n).permutation(n).astype(float))
    assert bench_module("bench_builds").interval(values) == (rank - 1, n - rank)


def test_the_interval_holds_the_median_as_often_as_it_says(bench_module) -> None:
    bench, rng = bench_module("bench_builds"), np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        low, high = bench.interval(list(rng.lognormal(size=12)))
        inside += low <= 1.0 <= high  # The median of the logarithms is 0.
    assert 0.95 <= inside / 2000 <= 0.98


def test_builds_run_in_turns_with_nothing_of_this_environment(
    bench_module, monkeypatch: pytest.MonkeyPatch, environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DQRELO_CORE_DIR", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    builds = environment("native", row(100, []), row(50, ["m"])), environment("wheel", row(99, []), row(48, ["m"]))
    words = ("--build", builds[0], "--build", builds[1], "--rounds", "6", "--", "-m", "base.gguf", "-p", "64")
    assert run_program(bench_module, monkeypatch, *words) == 1
    log = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[0] for line in log[2:6]] == ["native", "wheel", "wheel", "native"]
    assert len(log) == 2 + 2 * 6
    assert set(log) == {
        f"{name} -P -m dqrelo_gguf.cli.bench -m base.gguf -p 64 -o json core= path=" for name in ("native", "wheel")
    }
    out = capsys.readouterr().out
    assert "| pp64, base alone, 2 threads | 100.00 (100.00 to 100.00) | 99.00 (99.00 to 99.00) | 0.990 |" in out
    assert out.count("| yes |") == 1
    assert "| 0.960 | 0.960 to 0.960 | no |" in out
    assert run_program(bench_module, monkeypatch, "--within", "0.05", *words) == 0


def test_a_spread_that_reaches_over_the_bound_decides_nothing(bench_module) -> None:
    bench = bench_module("bench_builds")
    rounds = [[[row(100, [])], [row(x, [])]] for x in (90, 94, 96, 99, 101, 104)]
    (found,) = bench.compare(rounds)
    assert (found.low, found.high) == (0.90, 1.04)
    assert found.verdict(0.03) == "unclear"
    assert found.ratio == pytest.approx(0.975)


def test_builds_that_measured_other_things_are_not_compared(bench_module) -> None:
    bench = bench_module("bench_builds")
    for rounds in ([[[row(1, [])], [row(1, ["m"])]]], [[[row(1, []), row(1, [])], [row(1, []), row(1, [])]]]):
        with pytest.raises(InputError, match="the builds' rows differ"):
            bench.compare(rounds)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--build", "{good}"], "--build: given 1 times, expected two"),
        (["--build", "{good}", "--build", "{good}"], "of different names"),
        (["--build", "nothing", "--build", "{good}"], "--build nothing: expected NAME=PYTHON"),
        (["--build", "a=/no/such", "--build", "{good}"], "--build a=/no/such: expected NAME=PYTHON"),
        (["--build", "{good}", "--build", "{bad}", "--rounds", "5"], "--rounds 5: expected at least 6"),
        (["--build", "{good}", "--build", "{bad}"], "--build bad: the reason"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(  # noqa: PLR0917 - fixtures
    bench_module, monkeypatch, environment, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    builds = {"good": environment("good", row(1, [])), "bad": environment("bad", status=3)}
    assert run_program(bench_module, monkeypatch, *(word.format(**builds) for word in words)) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
