"""What a server with deltas tells about them: metrics, log, props."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, complete, error, idle_row, row, text
from tests.support.server_fixtures import Artefacts, Server, serve


def metrics(server: Server) -> dict[str, float]:
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


def test_metrics(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1", "--metrics", "--delta-admin", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        answer = complete(server, "words", cache_prompt=False).json()
        for name in ("words", "json", "loud", "again"):
            text(server, name)
        complete(server, "broken")
        server.ask("/deltas/unload", name="json")
        idle_row(server, "loud")
        found = metrics(server)

        def of(what: str, name: str) -> float:
            return found[f'llamacpp:delta_{what}{{delta="{name}"}}']

        assert of("requests_total", "words") == 2
        assert of("requests_total", "json") == 1
        assert of("tokens_predicted_total", "words") == 2 * answer["timings"]["predicted_n"]
        assert of("prompt_tokens_total", "words") >= answer["timings"]["prompt_n"]
        assert of("loads_total", "json") == 1  # The counter is still there, though the delta is unloaded.
        assert of("evictions_total", "words") == 1
        assert of("load_failures_total", "broken") == 1
        assert 0 < of("load_seconds_total", "words") < 60
        assert of("resident_bytes", "words") == 0
        assert of("resident_bytes", "loud") == row(server, "loud")["bytes"]
        assert of("requests_running", "loud") == 0
        assert found["llamacpp:deltas_requests_total"] == 5
        assert found["llamacpp:deltas_loads_total"] == 4
        assert found["llamacpp:deltas_resident_bytes"] == server.get("/deltas")["bytes_resident"]


def wait_for_log(server: Server, part: str) -> None:
    """Lines are written by a thread of their own, which may be behind the answers."""
    deadline = time.monotonic() + 20
    while part not in (log := server.log.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.02)


def test_life_is_logged(delta_server: Server) -> None:
    text(delta_server, "words")
    delta_server.ask("/deltas/unload", name="words")
    for part in (
        "deltas: 5, 0.0 MiB loaded",
        "--delta-memory: no limit",
        "weights applied",
        "'words': unloading",
        "'words': freed",
    ):
        wait_for_log(delta_server, part)


def test_props_of_a_model(delta_server: Server) -> None:
    base, loud = delta_server.get("/props"), delta_server.get("/props?model=loud")
    assert base == delta_server.get("/props?model=base")
    assert base["model_alias"] == "base"
    assert loud["model_alias"] == "loud"
    assert loud["model_path"].endswith("loud.dq.gguf")
    assert "<<" in loud["chat_template"]
    assert "<<" not in base["chat_template"]
    assert len(loud["delta"]["content_hash"]) == 64
    defaults = [props["default_generation_settings"]["params"] for props in (base, loud)]
    assert [(d["top_k"], d["temperature"]) for d in defaults] == [(40, pytest.approx(0.8)), (7, 0.25)]
    answer = delta_server.ask("/completion", model="loud", prompt=PROMPT, n_predict=1, top_k=9)
    assert answer["generation_settings"]["top_k"] == 9  # The request's own come first.
    assert answer["generation_settings"]["temperature"] == 0.25
    assert error(requests.get(delta_server.url + "/props?model=nobody", timeout=60), 404)
