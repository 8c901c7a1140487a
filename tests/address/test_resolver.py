"""The process beside a server that answers addresses: turns, bounds, and what ends a download."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dqrelo_gguf.address import resolver, wire
from dqrelo_gguf.address.resolver import Resolver

# In the place of the worker: notes its process in a folder, and does what the address says.
WORKER = """
import os, sys, time
from pathlib import Path
said = sys.stdin.buffer.readline().decode().strip().removeprefix("x://")
Path(sys.argv[1], f"{said}-{os.getpid()}").touch()
if said == "echo":
    print("200\\n/path\\naddress")
elif said == "die":
    os.kill(os.getpid(), 9)
elif said == "long":
    sys.stdout.write("x" * 100_000)
elif said == "half":
    sys.stdout.write("200")
else:
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workers").mkdir()
    return tmp_path / "workers"


@contextmanager
def serving(folder: Path, timeout_seconds: float = 60) -> Iterator[socket.socket]:
    """The server's end of the channel of a resolver on a thread."""
    ours, theirs = socket.socketpair()
    made = Resolver([sys.executable, "-c", WORKER, str(folder)], timeout_seconds)
    thread = threading.Thread(target=made.serve, args=(theirs,))
    thread.start()
    with theirs:
        with ours:
            yield ours
        thread.join(30)
    assert not thread.is_alive()


def ask(channel: socket.socket, text: bytes) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with theirs:
        socket.send_fds(channel, [b"\0"], [theirs.fileno()])
    ours.sendall(text)
    return ours


def answer(asking: socket.socket) -> bytes:
    said = b""
    while piece := asking.recv(4096):
        said += piece
    return said


def workers(folder: Path, what: str, n: int = 1) -> list[int]:
    """The processes that work on something, once there are so many."""
    deadline = time.monotonic() + 60
    while len(found := [int(path.name.partition("-")[2]) for path in folder.glob(f"{what}-*")]) < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def wait_for_the_end(process: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_answer_is_the_workers(folder: Path) -> None:
    with serving(folder) as channel:
        assert answer(ask(channel, b"x://echo\n")) == b"200\n/path\naddress\n"
        assert answer(ask(channel, b"x://echo\n")) == b"200\n/path\naddress\n"


@pytest.mark.parametrize(("what", "why"), [("die", "signal 9"), ("half", "exit code 0"), ("long", "ended")])
def test_a_worker_that_gives_no_answer(folder: Path, what: str, why: str) -> None:
    with serving(folder) as channel:
        said = answer(ask(channel, f"x://{what}\n".encode()))
        assert said.startswith(b"502\nthe process that fetched the address ended (")
        assert why.encode() in said
        assert answer(ask(channel, b"x://echo\n")).startswith(b"200\n")


def test_time_is_over(folder: Path) -> None:
    with serving(folder, timeout_seconds=1) as channel:
        assert answer(ask(channel, b"x://sleep\n")).startswith(b"504\nthe address was not fetched within 1 s")
        wait_for_the_end(*workers(folder, "sleep"))


def test_a_download_ends_with_who_waits_for_it(folder: Path) -> None:
    with serving(folder) as channel:
        asking = ask(channel, b"x://sleep\n")
        (process,) = workers(folder, "sleep")
        asking.close()
        wait_for_the_end(process)
        assert answer(ask(channel, b"x://echo\n")).startswith(b"200\n")


@pytest.mark.parametrize("text", [b"", b"x://echo", b"x" * (wire.MAX_ASK_BYTES + 1) + b"\n"])
def test_what_is_no_line_gets_no_answer(folder: Path, text: bytes) -> None:
    with serving(folder) as channel:
        asking = ask(channel, text)
        asking.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # It was closed with unread bytes.
            assert answer(asking) == b""
        assert answer(ask(channel, b"x://echo\n")).startswith(b"200\n")
    assert len(list(folder.iterdir())) == 1


def test_few_run_some_wait_and_more_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_RUNNING", 2)
    monkeypatch.setattr(resolver, "MAX_WAITING", 1)
    with serving(folder) as channel:
        running = [ask(channel, b"x://sleep\n") for _ in range(2)]
        workers(folder, "sleep", 2)
        asked = [ask(channel, b"x://echo\n") for _ in range(2)]  # Either may come first.
        (refused,), _, _ = select.select(asked, [], [], 60)
        assert answer(refused).startswith(b"503\n2 addresses are fetched and 1 wait")
        (waiting,) = [one for one in asked if one is not refused]
        running[0].close()
        assert answer(waiting).startswith(b"200\n")
        running[1].close()


def test_one_that_waited_too_long_never_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_RUNNING", 0)
    with serving(folder, timeout_seconds=0.3) as channel:
        assert answer(ask(channel, b"x://echo\n")).startswith(b"504\n")
        ask(channel, b"x://echo\n").close()
    assert not list(folder.iterdir())


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    if not path.exists():
        pytest.skip("needs /proc")
    return [int(child) for child in path.read_text().split()]


def test_a_resolver_that_is_killed_is_started_again_and_all_end_with_the_server() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "dqrelo_gguf.address.resolver", str(theirs.fileno()), "60", "1", "hf://a/"]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    with ours:
        assert answer(ask(ours, b"hf://b/c\n")).startswith(b"403\n")
        (first,) = children(process.pid)
        os.kill(first, signal.SIGKILL)
        assert answer(ask(ours, b"hf://b/c\n")).startswith(b"403\n")
        (second,) = children(process.pid)
        assert second != first
    assert process.wait(30) == 0
    wait_for_the_end(second)
    assert process.stderr is not None
    with process.stderr:
        assert b"is started again" in process.stderr.read()
