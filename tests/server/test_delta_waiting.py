"""Many requests that wait for deltas: how many may, what the others get, and that the rest of the server goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, complete, endless, error, row, text
from tests.support.server_fixtures import Artefacts, Server, serve

N_WAITING = 6


@pytest.fixture
def busy_server(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> Iterator[Server]:
    """One delta at a time, and N_WAITING requests that wait for that."""
    options = (
        "--deltas-dir",
        delta_folder,
        "--delta-max-active",
        "1",
        "--delta-max-waiting",
        str(N_WAITING),
        "--delta-admin",
    )
    with serve(artefacts.base, tmp_path, *options, "--context-shift", *CONTEXT) as server:
        yield server


def wait_for_line(server: Server, n: int) -> None:
    """Returns when n requests wait."""
    deadline = time.monotonic() + 60
    while server.get("/deltas")["requests_waiting"] != n:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_more_than_may_wait_are_told_when_to_come_back(busy_server: Server, delta_texts: dict[str, str]) -> None:
    with ThreadPoolExecutor(N_WAITING) as pool:
        with endless(busy_server, "words"):
            waiting = [pool.submit(text, busy_server, "json") for _ in range(N_WAITING)]
            wait_for_line(busy_server, N_WAITING)
            answer = complete(busy_server, "json")
            assert "--delta-max-waiting" in error(answer, 503)
            assert int(answer.headers["Retry-After"]) > 0

            # What waits for no delta, and what changes deltas, gets through.
            assert busy_server.get("/health") == {"status": "ok"}
            assert text(busy_server, "base") == delta_texts["base"]
            assert busy_server.ask("/deltas/load", name="loud")["state"] == "loaded"
            assert busy_server.ask("/deltas/unload", name="loud")["state"] == "unloaded"
            assert not any(request.done() for request in waiting)
        assert {request.result() for request in waiting} == {delta_texts["json"]}
    assert text(busy_server, "json") == delta_texts["json"]


def test_clients_that_go_make_room(busy_server: Server, delta_texts: dict[str, str]) -> None:
    with endless(busy_server, "words"):
        for _ in range(3 * N_WAITING):
            with pytest.raises(requests.Timeout):
                requests.post(
                    busy_server.url + "/completion",
                    json={"model": "json", "prompt": PROMPT, "n_predict": 1},
                    timeout=(5, 0.4),
                )
        wait_for_line(busy_server, 0)
        assert row(busy_server, "json")["requests_running"] == 0
    assert text(busy_server, "json") == delta_texts["json"]


def test_a_server_that_ends_answers_those_that_wait(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-max-active", "1", "--context-shift", *CONTEXT)
    with ThreadPoolExecutor(2) as pool:
        with serve(artefacts.base, tmp_path, *options) as server, endless(server, "words"):
            waiting = pool.submit(complete, server, "json")
            wait_for_line(server, 1)
        # The context manager has sent SIGTERM when it leaves, and the endless client has gone before.
        assert waiting.result().status_code in (200, 503)


@pytest.mark.parametrize("value", ["0", "-1", "100000", "many"])
def test_the_limit_leaves_threads(artefacts: Artefacts, tmp_path: Path, value: str) -> None:
    with (
        pytest.raises(pytest.fail.Exception, match="delta-max-waiting"),
        serve(artefacts.base, tmp_path, "--delta-max-waiting", value),
    ):
        pass
