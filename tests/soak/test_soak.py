"""Minutes of random traffic on one server, the same answers alone and in any mix, and what a killed server leaves behind.

DQRELO_SOAK_MINUTES sets how long the soak takes (default 3).
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.soak.administrator import PASSING, SWAPPED, Administrator, Timeline
from tests.soak.answers import Expected, Verdict, answer_alone
from tests.soak.deltas import PROMPTS, answers_alone, break_file, make_deltas
from tests.soak.memory import MemoryWatch, process_at
from tests.soak.traffic import OK, Client, Tally, seeded
from tests.support.programs import need_program
from tests.support.server_fixtures import Server, free_port, serve

pytestmark = pytest.mark.slow

MINUTES = float(os.environ.get("DQRELO_SOAK_MINUTES", "3"))
BASE = "base"
N_CLIENTS = 4
N_MIXED = 200  # requests of the isolation test
N_KILLS = 8
BROKEN_FILE = "broken.dq.gguf"
# The allocator keeps what its arenas once took, and each of the server's threads has one; the soak's own traffic takes tens of MiB.
MAX_GROWTH_MIB = 16.0
WARM_UP = 0.5  # share of the time until which memory may grow


@dataclass(frozen=True)
class Stage:
    """Files, and what each delta and the base say alone."""

    base: Path
    deltas: dict[str, Path]
    expected: dict[tuple[str, str], Expected]

    @property
    def folder(self) -> Path:
        return next(iter(self.deltas.values())).parent

    @property
    def names(self) -> tuple[str, ...]:
        return (BASE, *self.deltas)


def _loaded_at_start(deltas: dict[str, Path]) -> list[str]:
    return ["--delta", ",".join(f"{name}={path}" for name, path in deltas.items())]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("soak")
    base, deltas = make_deltas(folder)
    with serve(
        base, folder, *_loaded_at_start(deltas), "--alias", BASE, "-np", "1", "-c", "1024", "--cache-ram", "0"
    ) as alone:
        expected = answers_alone(alone, [BASE, *deltas])
    break_file(deltas["words"], deltas["words"].with_name(BROKEN_FILE))
    return Stage(base, deltas, expected)


def has_life() -> bool:
    """Whether this server can load and unload deltas while it runs."""
    told = subprocess.run([need_program("llama-server"), "--help"], capture_output=True, text=True, check=True)
    return "--deltas-dir" in told.stdout


def delta_options(stage: Stage) -> list[str]:
    """All deltas: by a directory and with room for a few at a time where the server offers that, else all at its start."""
    if has_life():
        return ["--deltas-dir", str(stage.folder), "--delta-memory", "2", "--delta-admin"]
    return _loaded_at_start(stage.deltas)


@pytest.fixture
def server(stage: Stage, tmp_path: Path) -> Iterator[Server]:
    caches = ("--cache-ram", "32", "--cache-reuse", "8")
    options = delta_options(stage)
    with serve(stage.base, tmp_path, *options, *caches, "--alias", BASE, "-np", "4", "-c", "4096") as running:
        yield running


def test_answers_alone_and_in_a_mix_are_equal(stage: Stage, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    clients = _clients(len(stage.names), server, stage, tally)
    left = iter(range(N_MIXED))
    lock = threading.Lock()

    def is_over() -> bool:
        with lock:
            return next(left, None) is None

    _run(clients, is_over)
    with capsys.disabled():
        print(f"\n{tally.n_requests} requests for {len(stage.deltas)} deltas and the base in one mix: {_shown(tally)}")
    assert Counter(tally.wrong).most_common(8) == []
    assert tally.verdicts.total() == N_MIXED


def test_soak(stage: Stage, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    tally, timeline = Tally(), Timeline()
    is_changing = requests.get(server.url + "/deltas", timeout=60).status_code == OK
    names = (*stage.names, SWAPPED, PASSING) if is_changing else stage.names
    workers: list[Client | Administrator] = []
    if is_changing:
        admin = Administrator(server, tuple(stage.deltas), BROKEN_FILE, timeline, tally, seeded(99))
        admin.prepare()
        workers.append(admin)
    workers += _clients(N_CLIENTS, server, stage, tally, timeline=timeline, names=names)
    deadline = time.monotonic() + 60 * MINUTES
    with MemoryWatch(process_at(server.url.rsplit(":", 1)[1])) as memory:
        _run(workers, lambda: time.monotonic() > deadline)
    warm, end = memory.peak(0.0, WARM_UP), memory.peak(WARM_UP, 1.0)
    with capsys.disabled():
        print(f"\n{MINUTES} min, {N_CLIENTS} clients, {tally.n_requests} requests: {_shown(tally)}")
        print(f"cancelled {tally.n_cancelled}, answered that the delta is away {tally.n_away}")
        print(f"changes: {dict(sorted(tally.actions.items())) if is_changing else 'none: this server has no /deltas'}")
        print(f"memory at most {warm:.1f} MiB until half of the time, {end:.1f} MiB after it")
        print(f"99th percentile of the gaps between tokens: {1000 * np.percentile(tally.gaps_s, 99):.1f} ms")
    assert Counter(tally.wrong).most_common(8) == []
    assert end - warm <= MAX_GROWTH_MIB
    for name in stage.names:  # It still serves all of them.
        assert answer_alone(server, name, PROMPTS[0]).tokens == stage.expected[name, PROMPTS[0]].tokens


def _clients(
    n: int, server: Server, stage: Stage, tally: Tally, *, timeline: Timeline | None = None, names: tuple[str, ...] = ()
) -> list[Client]:
    possible = (timeline or Timeline()).possible
    return [Client(server, stage.expected, possible, names or stage.names, tally, seeded(i)) for i in range(n)]


def _run(workers: Sequence[Client | Administrator], is_over: Callable[[], bool]) -> None:
    """Runs all workers at once, each until `is_over`, and raises what one of them raised."""
    with ThreadPoolExecutor(len(workers)) as pool:
        for done in [pool.submit(worker.run, is_over) for worker in workers]:
            done.result()


def _shown(tally: Tally) -> str:
    return ", ".join(f"{tally.verdicts[verdict]} {verdict.value}" for verdict in Verdict)


# --- kill -9 ---


def _kill_while_it_loads(stage: Stage, folder: Path, rng: random.Random) -> bool:
    """Starts a server, has it load and reload all the time, and kills it at a random moment. Whether it came to serve."""
    port = str(free_port())
    command = [need_program("llama-server"), "-m", stage.base, "--port", port, "--threads", "1", "-c", "512"]
    with (folder / "killed.log").open("ab") as log:
        process = subprocess.Popen([*command, *delta_options(stage)], stdout=log, stderr=subprocess.STDOUT)
    over = threading.Event()
    thread = threading.Thread(target=_reload_until, args=(f"http://127.0.0.1:{port}", list(stage.deltas), over))
    thread.start()
    time.sleep(rng.uniform(0.0, 1.0))
    is_alive = process.poll() is None
    process.kill()
    process.wait()
    over.set()
    thread.join()
    return is_alive


def _reload_until(url: str, names: list[str], over: threading.Event) -> None:
    """Has a server load delta after delta; it may be starting or dead."""
    while not over.is_set():
        for name in names:
            try:
                requests.post(url + "/deltas/reload", json={"name": name, "file": f"{name}.dq.gguf"}, timeout=10)
                requests.post(url + "/completion", json={"model": name, "prompt": "a", "n_predict": 1}, timeout=10)
            except requests.RequestException:
                time.sleep(0.01)


def test_killed_server_leaves_every_file_usable(stage: Stage, tmp_path: Path) -> None:
    files = [stage.base, *stage.folder.iterdir()]
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    rng = seeded(7)
    assert all(_kill_while_it_loads(stage, tmp_path, rng) for _ in range(N_KILLS))
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == before
    assert sorted(stage.folder.iterdir()) == sorted(files[1:])  # Nothing is left behind either.
    with serve(stage.base, tmp_path, *delta_options(stage), "--delta-verify", "--alias", BASE, "-c", "1024") as again:
        for name in stage.names:
            assert answer_alone(again, name, PROMPTS[0]).tokens == stage.expected[name, PROMPTS[0]].tokens
