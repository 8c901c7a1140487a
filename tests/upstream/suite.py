"""Runs files of upstream's server tests against one server and tells what became of each test."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.server_fixtures import free_port
from tests.upstream.hub import Hub

PASSED = "passed"
RUN_SECONDS = 1200  # seconds of one file; a server that hangs ends it


@dataclass(frozen=True)
class Outcome:
    """What became of a test: passed, failed or skipped, and why."""

    outcome: str
    message: str


@dataclass(frozen=True)
class Contender:
    """A server to test: its name in reports, the program, and whether each model gets its delta."""

    name: str
    server: Path
    has_delta: bool = False


@dataclass(frozen=True)
class Suite:
    """Upstream's tests, where they lie, and the local models.

    Args:
        folder: tools/server/tests of the pinned tree.
        hub: the models.
        scratch: for results and logs.
    """

    folder: Path
    hub: Hub
    scratch: Path

    def run(self, contender: Contender, tests: Sequence[str]) -> dict[str, Outcome]:
        """What became of each test, by its id.

        Args:
            contender: the server.
            tests: files or ids, relative to the suite's folder.

        Raises:
            RuntimeError: pytest itself did not get through.
        """
        results = self.scratch / "results.jsonl"
        results.write_text("")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "offline_plugin", "-p", "no:cacheprovider"]
        command += ["-m", "not slow", "--tb=short", *tests]
        with (self.scratch / f"{contender.name}.log").open("ab") as log:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment(contender, results),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=RUN_SECONDS,
                check=False,
            )
        # 0 means that all passed, 1 that some failed, and 5 that none was collected.
        if done.returncode not in (0, 1, 5):
            raise RuntimeError(f"pytest ended with {done.returncode}; see {self.scratch / f'{contender.name}.log'}")
        return _read(results)

    def _environment(self, contender: Contender, results: Path) -> dict[str, str]:
        local: dict[str, Any] = dataclasses.asdict(self.hub) | {"cache": None}
        if not contender.has_delta:
            local["deltas"] = {}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LLAMA_ARG_", "PYTEST_"))}
        return kept | {
            "DQRELO_UPSTREAM_LOCAL": json.dumps(local),
            "DQRELO_UPSTREAM_RESULTS": str(results),
            "LLAMA_CACHE": str(self.hub.cache),
            "LLAMA_SERVER_BIN_PATH": str(contender.server.resolve()),
            "PORT": str(free_port()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }


def _read(results: Path) -> dict[str, Outcome]:
    """The outcomes of a run; of several for one test the last that is not `passed` counts."""
    found: dict[str, Outcome] = {}
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        if entry["test"] not in found or entry["outcome"] != PASSED:
            found[entry["test"]] = Outcome(entry["outcome"], entry["message"])
    return found


def n_passed(outcomes: dict[str, Outcome]) -> int:
    return sum(o.outcome == PASSED for o in outcomes.values())


def lost(stock: dict[str, Outcome], ours: dict[str, Outcome]) -> list[str]:
    """The tests that pass in `stock` and do not in `ours`."""
    return [
        test for test, o in stock.items() if o.outcome == PASSED and (test not in ours or ours[test].outcome != PASSED)
    ]
