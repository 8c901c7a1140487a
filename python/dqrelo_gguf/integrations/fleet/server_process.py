"""A dqrelo-server that a replica runs: on a socket of its own, which only this user reaches."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import CommandError, printable

_POLL_SECONDS = 0.05
_STOP_SECONDS = 15.0
_KEPT_LINES = 50
_PREFIX = re.compile(r"[\d.]+ ([A-Z]) ")  # llama.cpp's, with time and severity


def ask_server(path_of_socket: Path, path: str, headers: Mapping[str, str], seconds: float = 10.0) -> dict[str, Any]:
    """GETs JSON from the server behind a Unix socket.

    Raises:
        OSError, http.client.HTTPException, ValueError: no answer, or no JSON of status 200.
    """
    connection = http.client.HTTPConnection("localhost", timeout=seconds)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(seconds)
        connection.sock.connect(str(path_of_socket))
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(f"{path}: status {answer.status}")
        found: dict[str, Any] = json.loads(text)
        return found
    finally:
        connection.close()


class ServerProcess:
    """Starts the server and waits until it answers.

    A Unix socket in a directory with permissions for this user takes the place of a port: no port is taken by somebody else in
    between, and nobody else on the machine gets past the front.

    Args:
        options: dqrelo-server's, but for the address.
        has_keys: whether the options make the server ask for a key. It gets one more, which stays in this process.
        start_seconds: how long it may take until it answers.
        log: takes each line that the server logs, in a thread of its own.

    Raises:
        CommandError: it ended, or did not answer in time; in one line, with an error of its log.
    """

    def __init__(
        self, options: Sequence[str], *, has_keys: bool, start_seconds: float, log: Callable[[str], None]
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dqrelo-"))  # mkdtemp gives it to this user alone.
        self.socket = self._folder / "server.sock"
        self._key = secrets.token_urlsafe(32) if has_keys else None
        self._log = log
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_end: Callable[[str], None] | None = None
        self._is_stopped = False
        command = [sys.executable, "-m", "dqrelo_gguf.integrations.fleet.child", str(os.getpid())]
        command += ["--host", str(self.socket), *options]
        # An environment is for this user's eyes, a command line for everybody's.
        environment = os.environ | ({"LLAMA_API_KEY": self._key} if self._key else {})
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, env=environment
        )
        self._reader = threading.Thread(target=self._read, name="dqrelo-server-log", daemon=True)
        self._reader.start()
        try:
            self._wait_until_ready(time.monotonic() + start_seconds)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def headers(self) -> dict[str, str]:
        """What the replica's own questions carry."""
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def when_ended(self, callback: Callable[[str], None]) -> None:
        """Has `callback` called with one line, in another thread, when the process ends by itself."""
        self._on_end = callback
        if not self._reader.is_alive() and not self._is_stopped:
            callback(self._ended())

    def stop(self) -> None:
        """Ends the process and removes its directory."""
        self._is_stopped = True
        if self.is_running():
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, path: str, seconds: float = 10.0) -> dict[str, Any]:
        """GETs JSON, for the time before an event loop is there; raises what ask_server does."""
        return ask_server(self.socket, path, self.headers, seconds)

    def _read(self) -> None:
        """Passes the log on until the process ends."""
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._lines.append(line)
                self._log(line)
        self._process.wait()
        if self._on_end is not None and not self._is_stopped:
            self._on_end(self._ended())

    def _wait_until_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if not self.is_running():
                self._reader.join()
                raise CommandError(self._ended())
            try:
                self.ask("/health", seconds=5)
                return
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(_POLL_SECONDS)
        raise CommandError(f"dqrelo-server did not answer in time: {self._reason()}")

    def _ended(self) -> str:
        return f"dqrelo-server ended with {self._process.poll()}: {self._reason()}"

    def _reason(self) -> str:
        """The first error near the end of the log, which the others follow from; else its last line."""
        lines = [(_PREFIX.match(line), line) for line in self._lines]
        errors = [line for found, line in lines if (found and found[1] == "E") or line.startswith("error")]
        line = next(iter(errors), lines[-1][1] if lines else "it logged nothing")
        return printable(_PREFIX.sub("", line))
