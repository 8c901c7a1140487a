"""The server of a replica as a process."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from dqrelo_gguf.errors import CommandError
from dqrelo_gguf.integrations.fleet.placement import Report
from dqrelo_gguf.integrations.fleet.reports import base_names_of, report_of, stats_of
from dqrelo_gguf.integrations.fleet.server_process import ServerProcess, ask_server
from tests.support.programs import need_program

START_SECONDS = 60.0
SMALL = ("--ctx-size", "256", "--parallel", "1", "--threads", "1", "--no-ui")

ORPHAN = """
import sys, time
from dqrelo_gguf.integrations.fleet.server_process import ServerProcess
server = ServerProcess(sys.argv[1:], has_keys=False, start_seconds=60, log=lambda line: None)
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def options(narrow_base: Path, narrow_deltas: list[Path]) -> list[str]:
    need_program("llama-server")
    return [
        "--model",
        str(narrow_base),
        "--deltas-dir",
        str(narrow_deltas[0].parent),
        "--alias",
        "narrow,small",
        *SMALL,
    ]


def started(options: list[str], *, has_keys: bool = False, start_seconds: float = START_SECONDS) -> ServerProcess:
    return ServerProcess(options, has_keys=has_keys, start_seconds=start_seconds, log=lambda _line: None)


def test_it_answers_on_a_socket_that_only_its_user_reaches_and_leaves_nothing_behind(options: list[str]) -> None:
    server = started(options)
    folder = server.socket.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    base_names = base_names_of(server.ask("/v1/models"))
    assert base_names == ["narrow", "small"]
    stats = stats_of(server.ask("/deltas"), 1, base_names)
    assert stats == {"slots": 1, "budget": None, "resident": {}, "base": base_names}
    server.stop()
    assert not server.is_running()
    assert not folder.exists()
    server.stop()


def test_with_keys_only_its_replica_and_their_owners_get_in(options: list[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-a-client\n")
    server = started([*options, "--api-key-file", str(keys)], has_keys=True)
    try:
        assert server.ask("/deltas")["data"]
        assert ask_server(server.socket, "/deltas", {"Authorization": "Bearer key-of-a-client"})["data"]
        with pytest.raises(ValueError, match="status 401"):
            ask_server(server.socket, "/deltas", {})
        secret = server.headers["Authorization"].removeprefix("Bearer ")
        assert secret not in " ".join(psutil.Process(server.pid).cmdline())
    finally:
        server.stop()


def test_its_end_is_told_unless_it_was_stopped(options: list[str]) -> None:
    told, is_told = [], threading.Event()

    def tell(reason: str) -> None:
        told.append(reason)
        is_told.set()

    server = started(options)
    server.when_ended(tell)
    psutil.Process(server.pid).kill()
    assert is_told.wait(START_SECONDS)
    assert told[0].startswith("dqrelo-server ended with -9: ")
    server.stop()
    other = started(options)
    other.when_ended(tell)
    other.stop()
    assert len(told) == 1


def test_a_server_that_does_not_start_is_an_error_of_one_line(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"dqrelo-server ended with 1: gguf_init.*nothing\.gguf") as error:
        started(["--model", str(tmp_path / "nothing.gguf"), *options[2:]])
    assert "\n" not in str(error.value)
    with pytest.raises(CommandError, match="dqrelo-server ended with 1: error: invalid argument: --nonsense"):
        started([*options, "--nonsense"])
    with pytest.raises(CommandError, match="did not answer in time"):
        started(options, start_seconds=0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a server whose replica was killed")
def test_it_does_not_outlive_a_replica_that_was_killed(options: list[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN, *options], stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        server = psutil.Process(int(replica.stdout.readline()))
        replica.kill()
    server.wait(START_SECONDS)


def test_stats_hold_what_is_in_memory_and_nothing_that_always_changes() -> None:
    rows = [
        {"name": "b", "state": "loaded", "bytes": 10, "bytes_resident": 12, "last_used": 1, "requests_running": 3},
        {"name": "a", "state": "loading", "bytes": 20, "bytes_resident": 0},
        {"name": "c", "state": "registered", "bytes": 30, "bytes_resident": 0},
        {"name": "d", "state": "draining", "bytes": 40, "bytes_resident": 40},
        {"name": "e", "state": "failed", "bytes": None, "bytes_resident": 0},
    ]
    stats = stats_of({"data": rows, "bytes_max": 99}, 4, ["base"])
    assert stats == {"slots": 4, "budget": 99, "resident": {"a": 20, "b": 12}, "base": ["base"]}
    new = Report(4, 99)
    report = report_of(stats, new)
    assert (report.slots, report.budget_bytes, report.resident_bytes) == (4, 99, {"a": 20, "b": 12})
    assert report_of({}, new) is new
