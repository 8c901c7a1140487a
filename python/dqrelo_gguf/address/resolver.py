"""Resolves addresses for a running server, beside it: `python -m dqrelo_gguf.address.resolver CHANNEL TIMEOUT MAX_GIB PREFIX...`

The server holds the other end of a socket pair, CHANNEL, which has no name that another process could open. For each address it sends
one end of a new pair; an address comes there, and an answer goes back (wire.py). Each address is fetched by a process of its own
(worker.py), which is ended when the server closes its end, or when the time is over. All ends when the server does: its end of CHANNEL
closes, however it ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dqrelo_gguf.address import wire

MAX_RUNNING = 4  # Downloads at a time; each has eight connections.
MAX_WAITING = 16  # Addresses that wait for their turn, beside those.
_PAUSE_SECONDS = 0.5  # before a resolver that ended is started again
_ASK_SECONDS = 0.1  # between two looks whether the server still waits


class Resolver:
    """Answers addresses, each on a thread.

    Args:
        worker: the command that fetches one address.
        timeout_seconds: that one address may take, its wait for a turn included.
    """

    def __init__(self, worker: Sequence[str], timeout_seconds: float) -> None:
        self._worker, self._timeout_seconds = list(worker), timeout_seconds
        self._turns = threading.Semaphore(MAX_RUNNING)
        self._places = threading.Semaphore(MAX_RUNNING + MAX_WAITING)

    def serve(self, channel: socket.socket) -> None:
        """Works until the other end is closed."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            if not data:
                return
            for descriptor in descriptors:
                threading.Thread(target=self._answer, args=(socket.socket(fileno=descriptor),), daemon=True).start()

    def _answer(self, asking: socket.socket) -> None:
        """One address. The connection's end says that there is no answer."""
        with asking, contextlib.suppress(OSError):
            asking.set_inheritable(False)
            asking.settimeout(self._timeout_seconds)
            text = _line(asking)
            if not self._places.acquire(blocking=False):
                why = f"{MAX_RUNNING} addresses are fetched and {MAX_WAITING} wait, as many as may. Try again later"
                asking.sendall(wire.refused(wire.UNAVAILABLE, why))
                return
            try:
                answer = self._fetch(asking, text) if text else None
                if answer is not None:
                    asking.sendall(answer)
            finally:
                self._places.release()

    def _fetch(self, asking: socket.socket, text: bytes) -> bytes | None:
        """The answer for an address; none where nobody waits for it any more."""
        deadline = time.monotonic() + self._timeout_seconds
        with self._turn(asking, deadline) as has_turn:
            if not has_turn:
                return None if _is_gone(asking) else self._late()
            with _running(self._worker) as worker:
                assert worker.stdin is not None
                assert worker.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.write(text)
                    worker.stdin.flush()
                answer = _output(worker.stdout.fileno(), asking, deadline)
                if answer is None:
                    return None if _is_gone(asking) else self._late()
                if not answer.endswith(b"\n"):
                    worker.kill()  # One that said too much still runs.
                    code = worker.wait()
                    why = f"signal {-code}" if code < 0 else f"exit code {code}"
                    return wire.refused(
                        wire.SOURCE_FAILED,
                        f"the process that fetched the address ended ({why}). What is here already is kept; try again",
                    )
                return answer

    def _late(self) -> bytes:
        return wire.refused(
            wire.OUT_OF_TIME,
            f"the address was not fetched within {self._timeout_seconds:g} s (--load-timeout). What is here already is kept; try again",
        )

    @contextmanager
    def _turn(self, asking: socket.socket, deadline: float) -> Iterator[bool]:
        """True once one of the downloads that may run is this one; False when nobody waits any more, or time is over."""
        while not (has_turn := self._turns.acquire(timeout=_ASK_SECONDS)):
            if _is_gone(asking) or time.monotonic() > deadline:
                break
        try:
            yield has_turn
        finally:
            if has_turn:
                self._turns.release()


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.communicate()


def _line(asking: socket.socket) -> bytes:
    """What the server asks; nothing where it goes before the line ends, or asks too much."""
    text = b""
    while not text.endswith(b"\n"):
        piece = asking.recv(wire.MAX_ASK_BYTES)
        text += piece
        if not piece or len(text) > wire.MAX_ASK_BYTES:
            return b""
    return text


def _output(descriptor: int, asking: socket.socket, deadline: float) -> bytes | None:
    """All that a worker says; None when nobody waits any more, or time is over."""
    said = b""
    while len(said) <= wire.MAX_ANSWER_BYTES:
        seconds = deadline - time.monotonic()
        ready, _, _ = select.select([descriptor, asking.fileno()], [], [], max(0.0, seconds))
        if asking.fileno() in ready or not ready:
            return None
        piece = os.read(descriptor, wire.MAX_ANSWER_BYTES)
        said += piece
        if not piece:
            break
    return said[: wire.MAX_ANSWER_BYTES]


def _is_gone(asking: socket.socket) -> bool:
    """True when the server has closed its end: it says nothing after the address."""
    return bool(select.select([asking], [], [], 0)[0])


def main(argv: Sequence[str]) -> None:
    """Runs the process: one that answers, and this one, which starts another if that one ends before the server does."""
    descriptor, timeout, *rest = argv
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    while True:
        child = os.fork()  # No thread has been started here, and no library that minds.
        if child == 0:
            try:
                worker = [sys.executable, "-P", "-m", "dqrelo_gguf.address.worker", *rest]
                Resolver(worker, float(timeout)).serve(channel)
            finally:
                os._exit(int(sys.exc_info()[0] is not None))
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        print("the resolver of addresses ended, and is started again", file=sys.stderr, flush=True)
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
