"""An answer's "system_fingerprint" says which content computed it, also across a reload."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, row
from tests.support.server_fixtures import Artefacts, Server, serve

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def body_of(path: str, model: str, **more: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "a b"}]} if path == CHAT else {"prompt": PROMPT}
    return {"model": model, "max_tokens": 3, "temperature": 0} | prompt | more


def chunks(server: Server, body: dict[str, Any], path: str, started: threading.Event | None = None) -> list[Any]:
    """Every chunk of a streamed answer; `started` is set with the first one."""
    found = []
    with requests.post(server.url + path, json=body | {"stream": True}, stream=True, timeout=120) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                found.append(json.loads(line.removeprefix(b"data: ")))
                if started:
                    started.set()
    return found


def marks(server: Server, path: str, model: str, **more: Any) -> set[str]:
    """The fingerprints of one answer: whole, and streamed with its usage."""
    body = body_of(path, model, **more)
    streamed = chunks(server, body | {"stream_options": {"include_usage": True}}, path)
    assert len(streamed) >= 3
    return {server.ask(path, **body)["system_fingerprint"]} | {chunk["system_fingerprint"] for chunk in streamed}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_answer_says_which_content_computed_it(delta_server: Server, path: str) -> None:
    (base,) = marks(delta_server, path, "base")
    assert base == delta_server.get("/props")["build_info"]  # upstream's text
    (words,) = marks(delta_server, path, "words")
    assert words == f"{base}-dq-{row(delta_server, 'words')['content_hash'][:16]}"
    assert marks(delta_server, path, "again") == {words}  # The same content under another name.
    (json_mark,) = marks(delta_server, path, "json")
    (half,) = marks(delta_server, path, "words", delta_scale=0.5)
    (mix,) = marks(delta_server, path, "words*0.5+json*0.5")
    assert marks(delta_server, path, "json*0.5+words*0.5") == {mix}  # Sums do not depend on the order.
    (other_mix,) = marks(delta_server, path, "words*0.5+json*0.25")
    several = {words, json_mark, half, mix, other_mix}
    assert len(several) == 5
    assert all(re.fullmatch(re.escape(base) + "-dq-[0-9a-f]{16}", mark) for mark in several)
    assert marks(delta_server, path, "words*1") == {words}
    assert marks(delta_server, path, "words", delta_scale=0) == {base}  # Scaled to nothing, the base computes.
    assert marks(delta_server, path, "words", n=2) == {words}


def test_a_server_without_deltas_has_upstreams_text(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, *CONTEXT) as server:
        assert marks(server, CHAT, "any") == {server.get("/props")["build_info"]}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_running_answer_keeps_its_mark_over_a_reload(delta_server: Server, path: str) -> None:
    (old,) = marks(delta_server, path, "words")
    started = threading.Event()
    body = body_of(path, "words", max_tokens=300, ignore_eos=True)
    found: list[Any] = []
    running = threading.Thread(target=lambda: found.extend(chunks(delta_server, body, path, started)))
    running.start()
    assert started.wait(60)
    delta_server.ask("/deltas/reload", name="words", file="json.dq.gguf")
    (new,) = marks(delta_server, path, "words")
    was_running = running.is_alive()
    running.join()
    assert new != old
    assert {chunk["system_fingerprint"] for chunk in found} == {old}
    assert was_running, "the answer ended before the reload: the test saw nothing"


def test_a_text_with_the_same_words_is_not_changed(delta_server: Server) -> None:
    build = delta_server.get("/props")["build_info"]
    forged = json.dumps({"system_fingerprint": build}, separators=(",", ":"))
    answer = delta_server.ask(TEXT, model="words", prompt=f"a {forged}", echo=True, max_tokens=2, temperature=0)
    assert f"a {forged}" in answer["choices"][0]["text"]
    assert answer["system_fingerprint"] == f"{build}-dq-{row(delta_server, 'words')['content_hash'][:16]}"
