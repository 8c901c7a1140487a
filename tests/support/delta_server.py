"""What the tests of deltas in llama-server share: requests, and a folder of deltas."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.support.server_fixtures import Artefacts, Server

PROMPT = "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n"
CONTEXT = ("-np", "4", "-c", "2048", "--alias", "base")
# Two prompts that share nothing else both begin with the BOS token, so a cache of the one holds this many tokens of the other.
BOS_ALONE = 1
# An answer that goes on behind its end. The end token stays among the most probable ones, so it takes a third to see a tie.
ENDLESS = {"ignore_eos": True, "n_probs": 3}


def complete(server: Server, model: str, **more: Any) -> requests.Response:
    body = {"model": model, "prompt": PROMPT, "n_predict": 12, "temperature": 0} | more
    return server.post("/completion", body)


def text(server: Server, model: str, **more: Any) -> str:
    answer = complete(server, model, **more)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["content"]
    return found


def error(answer: requests.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    found: str = answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == status
    return found


def row(server: Server, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [row for row in server.get("/deltas")["data"] if row["name"] == name]
    assert len(rows) == 1
    return rows[0]


def idle_row(server: Server, name: str) -> dict[str, Any]:
    """The row once no request holds the delta: the last one lets go just after it was answered."""
    deadline = time.monotonic() + 60
    while (found := row(server, name))["requests_running"] > 0:
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
    return found


def states(server: Server) -> dict[str, str]:
    return {row["name"]: row["state"] for row in server.get("/deltas")["data"]}


def whole_answer(server: Server, model: str, n: int) -> list[dict[str, Any]]:
    """What `stream` finds when nothing else is asked."""
    answer = complete(server, model, n_predict=n, **ENDLESS)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["completion_probabilities"]
    return found


def stream(server: Server, model: str, n: int, started: threading.Event, **more: Any) -> list[dict[str, Any]]:
    """The tokens of a streamed answer with their log probabilities; `started` is set with the first one."""
    body = {"model": model, "prompt": PROMPT, "n_predict": n, "temperature": 0, "stream": True} | ENDLESS | more
    found = []
    with requests.post(server.url + "/completion", json=body, stream=True, timeout=120) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                chunk = json.loads(line.removeprefix(b"data: "))
                assert "error" not in chunk, chunk
                found += chunk.get("completion_probabilities", [])
                started.set()
    return found


@contextmanager
def endless(server: Server, model: str) -> Iterator[None]:
    """An answer that goes on as long as the block. The server needs --context-shift."""
    body = {"model": model, "prompt": PROMPT, "n_predict": -1, "ignore_eos": True, "stream": True}
    with requests.post(server.url + "/completion", json=body, stream=True, timeout=120) as running:
        lines = running.iter_lines()  # It is kept, because the answer ends with it.
        assert next(lines)
        yield


def make_folder(artefacts: Artefacts, folder: Path) -> Path:
    """words, json, loud and again as links' targets: plain copies; and a file that is no delta."""
    folder.mkdir()
    for path in (artefacts.words, artefacts.json, artefacts.loud, artefacts.words_again):
        shutil.copyfile(path, folder / path.name)
    (folder / "broken.dq.gguf").write_bytes(artefacts.words.read_bytes()[:5000])
    (folder / "note.txt").write_text("not a delta")
    return folder
