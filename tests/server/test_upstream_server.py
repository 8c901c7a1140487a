"""Upstream's own server tests on this server: what passes on stock llama-server passes here, without a delta and with one.

They run where they lie, in the pinned tree that DQRELO_LLAMA_CPP_DIR names. DQRELO_STOCK_SERVER names a llama-server of that tree without the
patches (docs/building.md says how to make one).
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.programs import need_program
from tests.upstream.hub import make_hub
from tests.upstream.suite import Contender, Outcome, Suite, lost, n_passed

pytestmark = pytest.mark.slow

# Upstream's tests import these, besides what this project needs.
NEEDED = ("aiohttp", "openai", "prometheus_client", "filelock")
FOLDER = Path(os.environ.get("DQRELO_LLAMA_CPP_DIR", "")) / "tools" / "server" / "tests"
FILES = sorted(f"unit/{path.name}" for path in FOLDER.glob("unit/test_*.py"))
MIN_PASSED = 100  # The stock server passes more. With fewer the comparison would say little.
N_RERUNS = 2  # Only what fails here runs again, because many of the tests depend on timing.

# With a delta these must fail.
DIFFER_WITH_A_DELTA = {
    # They count the models in /v1/models, where the delta is one more.
    "unit/test_basic.py::test_server_models",
    "unit/test_basic.py::test_server_model_aliases_and_tags",
    "unit/test_sleep.py::test_server_sleep",
    # It wants the same metrics before and during sleep, but a delta is freed then, and its resident bytes are 0.
    "unit/test_sleep.py::test_server_sleep_read_only_endpoints",
}


@dataclass
class Comparison:
    """The same tests on three servers.

    Args:
        suite: runs them.
        stock: the reference.
        ours: this server without a delta and with one.
        outcomes: what has been run, by server and test.
    """

    suite: Suite
    stock: Contender
    ours: tuple[Contender, ...]
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def run(self, file: str) -> dict[str, list[str]]:
        """Runs a file on all servers; the tests that pass on stock only, by server."""
        outcomes = {c.name: self.suite.run(c, [file]) for c in (self.stock, *self.ours)}
        for name, found in outcomes.items():
            self.outcomes.setdefault(name, {}).update(found)
        return {c.name: self._confirmed(c, lost(outcomes[self.stock.name], outcomes[c.name])) for c in self.ours}

    def _confirmed(self, contender: Contender, suspects: list[str]) -> list[str]:
        """Those of the suspects that pass on stock only in every further run."""
        suspects = [test for test in suspects if not (contender.has_delta and test in DIFFER_WITH_A_DELTA)]
        for _ in range(N_RERUNS):
            if suspects:
                suspects = lost(self.suite.run(self.stock, suspects), self.suite.run(contender, suspects))
        return suspects

    def counts(self, file: str = "") -> str:
        """How many tests of a file, or of all, passed on each server."""
        parts = []
        for name, outcomes in self.outcomes.items():
            found = {test: outcome for test, outcome in outcomes.items() if test.startswith(file)}
            parts.append(f"{name} {n_passed(found)} of {len(found)}")
        return ", ".join(parts)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The three servers and the local models."""
    stock = os.environ.get("DQRELO_STOCK_SERVER")
    if not stock:
        pytest.skip("DQRELO_STOCK_SERVER names no stock llama-server")
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"upstream's tests need {', '.join(absent)}: pip install 'dqrelo-gguf[upstream]'")
    folder = tmp_path_factory.mktemp("upstream")
    server = need_program("llama-server")
    ours = (Contender("ours", server), Contender("ours with a delta", server, has_delta=True))
    return Comparison(Suite(FOLDER, make_hub(folder / "hub"), folder), Contender("stock", Path(stock)), ours)


@pytest.mark.skipif(not FILES, reason="DQRELO_LLAMA_CPP_DIR names no llama.cpp tree with server tests")
@pytest.mark.parametrize("file", FILES)
def test_what_passes_on_stock_passes_here(
    comparison: Comparison, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = comparison.run(file)
    with capsys.disabled():
        print(f"\n{file} passed: {comparison.counts(file)}")
    assert found == {contender.name: [] for contender in comparison.ours}


def test_enough_pass_on_stock(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs last; prints what passed where, and why the rest did not on stock."""
    stock = comparison.outcomes.get(comparison.stock.name, {})
    if len({test.split("::")[0] for test in stock}) < len(FILES):
        pytest.skip("not all files were run")
    with capsys.disabled():
        print(f"\nupstream's server tests passed: {comparison.counts()}")
        for reason, tests in _reasons(stock, lambda outcome: outcome.outcome == "failed").items():
            print(f"{len(tests):4} fail on stock: {reason}: {', '.join(sorted(tests))}")
        print(f"{sum(o.outcome == 'skipped' for o in stock.values()):4} are skipped by upstream")
    assert n_passed(stock) >= MIN_PASSED


def _reasons(outcomes: dict[str, Outcome], chosen: Callable[[Outcome], bool]) -> dict[str, Counter[str]]:
    """The chosen tests' names, without parameters, by message."""
    found: dict[str, Counter[str]] = {}
    for test, outcome in outcomes.items():
        if chosen(outcome):
            found.setdefault(outcome.message, Counter())[test.split("::")[-1].split("[")[0]] += 1
    return found
