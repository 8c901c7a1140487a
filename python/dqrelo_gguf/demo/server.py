"""One server with the base and all deltas, and questions to it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from dqrelo_gguf.demo.pair import Model
from dqrelo_gguf.demo.steps import command, last_line
from dqrelo_gguf.errors import CommandError

START_SECONDS = 60
STOP_SECONDS = 10
ANSWER_SECONDS = 120
ANSWER_TOKENS = 48
SHOWN_CHARACTERS = 60


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(models: list[Model], log: Path) -> Iterator[str]:
    """Runs one server with the base and all deltas; gives its address when it is ready and stops it at the end.

    Raises:
        CommandError: the server ended, or was not ready in time.
    """
    base, *deltas = models
    port = _free_port()
    words = [*command("server"), "-m", str(base.path), "--alias", base.name, "--host", "127.0.0.1"]
    words += ["--threads", "1"]  # A model this small is fastest on one thread.
    words += ["--port", str(port), "--parallel", str(len(models)), "--ctx-size", str(512 * len(models))]
    for delta in deltas:
        words += ["--delta", f"{delta.name}={delta.path}"]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT) as server:
        try:
            _wait_until_ready(server, url, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            code = server.returncode
            raise CommandError(f"server: ended with exit code {code}: {last_line(log)} (--work DIR keeps {log.name})")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        time.sleep(0.1)
    raise CommandError(f"server: was not ready after {START_SECONDS} s (--work DIR keeps {log.name})")


def ask(url: str, model: str, question: str) -> tuple[str, float]:
    """The answer on one line, cut where it is long, and the seconds it took.

    Raises:
        CommandError: the server refused the question.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    start = time.perf_counter()
    reply = requests.post(f"{url}/v1/chat/completions", json=body, timeout=ANSWER_SECONDS)
    seconds = time.perf_counter() - start
    if not reply.ok:
        raise CommandError(f"server: model {model}: HTTP {reply.status_code}: {reply.text.strip()}")
    text = " ".join(reply.json()["choices"][0]["message"]["content"].split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...", seconds
