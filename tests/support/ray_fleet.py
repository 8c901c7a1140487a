"""A fleet on a small local Ray cluster, for tests: what it is asked, and the servers behind it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from dqrelo_gguf.integrations.fleet.server_process import ask_server
from tests.support.server_fixtures import free_port

WAIT_SECONDS = 90.0
ANSWER_SECONDS = 120
IMPORT_PATH = "dqrelo_gguf.integrations.ray_serve:app"
OBJECT_STORE_BYTES = 80 << 20  # Ray's least is 75 MiB; answers go through it only where they are long.
PROMPT = "the dog sees a cat and"


@dataclass(frozen=True)
class FleetServer:
    """A server of a replica; it is reached beside the front."""

    socket: Path
    process: psutil.Process

    @property
    def actor(self) -> psutil.Process:
        """The replica, which started it."""
        found = self.process.parent()
        assert found is not None
        return found

    def deltas(self) -> dict[str, dict[str, Any]]:
        """GET /deltas of a server without keys, by name."""
        rows: list[dict[str, Any]] = ask_server(self.socket, "/deltas", {}, ANSWER_SECONDS)["data"]
        return {row["name"]: row for row in rows}

    def loaded(self) -> list[str]:
        return [name for name, row in self.deltas().items() if row["state"] == "loaded"]

    def is_computing(self) -> bool:
        """For any model, the base included."""
        slots: Any = ask_server(self.socket, "/slots", {}, ANSWER_SECONDS)
        return any(slot["is_processing"] for slot in slots)

    def running(self) -> int:
        return sum(row["requests_running"] for row in self.deltas().values())


@dataclass(frozen=True)
class Fleet:
    """A Ray cluster with Serve; `url` is where its applications are."""

    url: str
    folder: Path

    def deploy(self, replicas: int, **arguments: Any) -> None:
        """Has this many replicas serve, as `serve deploy` with a config file does; waits until they do."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": "fleet",
            "import_path": IMPORT_PATH,
            "args": arguments,
            "deployments": [{"name": "Replica", "num_replicas": replicas}],
        }
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=True)

    def servers(self) -> list[FleetServer]:
        """Those that run."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if len(command) > 2 and command[1] == "--host" and command[2].startswith(str(self.folder)):
                found.append(FleetServer(Path(command[2]), process))
        return found

    def is_known_to_the_front(self) -> bool:
        """Whether requests reach every server: the front learns of a replica a moment after it runs."""
        servers = self.servers()
        with ExitStack() as streams:
            readers = [events(streams.enter_context(self.endless("base"))) for _ in servers]
            for reader in readers:
                next(reader)
            return all(server.is_computing() for server in servers)

    def server_with(self, name: str) -> FleetServer:
        """The only one that has this delta in memory."""
        (found,) = [server for server in self.servers() if name in server.loaded()]
        return found

    def post(self, model: str, path: str = "/v1/completions", **more: Any) -> requests.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | more
        return requests.post(self.url + path, json=body, timeout=ANSWER_SECONDS)

    def text(self, model: str, **more: Any) -> str:
        answer = self.post(model, **more)
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["choices"][0]["text"]
        return found

    def endless(self, model: str) -> requests.Response:
        """A stream that does not end by itself."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": -1, "ignore_eos": True, "stream": True}
        answer = requests.post(self.url + "/v1/completions", json=body, stream=True, timeout=ANSWER_SECONDS)
        assert answer.status_code == 200, answer.text
        return answer


def events(answer: requests.Response) -> Iterator[dict[str, Any]]:
    """The data of a stream's events, as they come; [DONE] is {}. The stream ends with this iterator: keep it as long as the stream."""
    for line in answer.iter_lines(chunk_size=None):
        if line.startswith(b"data: "):
            text = line.removeprefix(b"data: ")
            yield {} if text == b"[DONE]" else json.loads(text)


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Returns when it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


@contextmanager
def running_fleet() -> Iterator[Fleet]:
    """A Ray cluster of this machine with Serve, as long as the block; without dashboard, and with nothing of it in the home directory."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dqrelo-gguf[serve]'")
    serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install 'dqrelo-gguf[serve]'")
    # Paths of sockets have 107 bytes at most, so pytest's directories are too long.
    folder = Path(tempfile.mkdtemp(prefix="dqf-", dir="/tmp"))
    port = free_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled"), ("TMPDIR", str(folder))):
            environment.setenv(name, value)  # Ray's processes inherit them.
        try:
            ray.init(
                num_cpus=4,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=bool(os.environ.get("DQRELO_RAY_LOG")),
                _temp_dir=str(folder / "ray"),
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield Fleet(f"http://127.0.0.1:{port}", folder)
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
