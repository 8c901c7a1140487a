"""Who may load and unload deltas over HTTP, and what a request may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, complete, error, states, text
from tests.support.keys import LIMITED, MASTER, ask, serve_keys
from tests.support.server_fixtures import Artefacts, Server, serve

ADMIN: dict[str, dict[str, Any]] = {
    "/deltas/load": {"name": "words"},
    "/deltas/reload": {"name": "words"},
    "/deltas/unload": {"name": "words"},
    "/v1/load_lora_adapter": {"lora_name": "more", "lora_path": "words.dq.gguf"},
    "/v1/unload_lora_adapter": {"lora_name": "more"},
}

# --- vLLM's endpoints


def test_vllm_endpoints(delta_server: Server, delta_texts: dict[str, str]) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    answer = delta_server.post(load, {"lora_name": "sql", "lora_path": "json.dq.gguf"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert text(delta_server, "sql") == delta_texts["json"]
    again = {"lora_name": "sql", "lora_path": "words.dq.gguf"}
    assert "already been loaded" in error(delta_server.post(load, again), 400)
    assert delta_server.post(load, again | {"load_inplace": True}).status_code == 200
    assert text(delta_server, "sql") == delta_texts["words"]
    answer = delta_server.post(unload, {"lora_name": "sql"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert error(complete(delta_server, "sql"), 404)
    assert "cannot be found" in error(delta_server.post(unload, {"lora_name": "sql"}), 400)
    assert error(delta_server.post(load, {"lora_name": "sql", "lora_path": "gone.dq.gguf"}), 404)
    assert error(delta_server.post(load, {"lora_name": "sql"}), 400)


# --- what the network may ask for


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../base.gguf",
        "a/../../base.gguf",
        "",
        "a\u0000b",
        "..\\base.gguf",
        ".hidden.dq.gguf",
        ".cache/words.dq.gguf",
        "./words.dq.gguf",
        7,
        None,
    ],
)
def test_paths_outside_the_folder_are_refused(delta_server: Server, path: object) -> None:
    answer = delta_server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path})
    assert error(answer, 400)
    assert "x" not in states(delta_server)


@pytest.mark.parametrize("path", ["/deltas/load", "/deltas/unload", "/deltas/reload"])
@pytest.mark.parametrize("body", ["", "[1]", "{", "{}", '{"name": 3}', '{"name": ""}'])
def test_bad_bodies(delta_server: Server, path: str, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert error(requests.post(delta_server.url + path, data=body, headers=headers, timeout=60), 400)


@pytest.mark.parametrize("name", ["base", "base.gguf", "a/b", "a\nb", 'a"b', "x" * 1000, ".words"])
def test_bad_names(delta_server: Server, name: str) -> None:
    assert error(delta_server.post("/deltas/load", {"name": name, "file": "words.dq.gguf"}), 400)


# --- whose calls change the server


def statuses(server: Server, key: str | None = None) -> dict[str, int]:
    return {path: ask(server, "POST", path, key, json=body).status_code for path, body in ADMIN.items()}


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 403),
        (("--no-delta-admin",), 403),
        (("--delta-admin",), 200),
        (("--api-key", MASTER), 200),
        (("--api-key", MASTER, "--no-delta-admin"), 403),
    ],
)
def test_admin_needs_a_key_or_the_option(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    key = MASTER if "--api-key" in options else None
    with serve(artefacts.base, tmp_path, "--deltas-dir", delta_folder, *options, *CONTEXT) as server:
        assert statuses(server, key) == dict.fromkeys(ADMIN, status)
        if key:
            assert statuses(server) == dict.fromkeys(ADMIN, 401)
        elif status == 403 and not options:
            assert "--delta-admin" in error(server.post("/deltas/load", {"name": "words"}), 403)
        assert ask(server, "GET", "/deltas", key).status_code == 200


def test_limited_keys_are_no_admins(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    with serve_keys(artefacts, delta_folder, tmp_path, "--delta-admin") as server:
        for key in LIMITED:
            assert statuses(server, key) == dict.fromkeys(ADMIN, 403)
        assert statuses(server, MASTER) == dict.fromkeys(ADMIN, 200)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "",
        None,
    ],
)
def test_what_changes_the_server_takes_json_only(delta_server: Server, content_type: str | None) -> None:
    """A page of another origin may send these without asking the server first."""
    before = states(delta_server)
    for path, body in ADMIN.items():
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = requests.post(delta_server.url + path, data=json.dumps(body), headers=headers, timeout=60)
        assert "application/json" in error(answer, 415)
    form = requests.post(delta_server.url + "/deltas/unload", files={"name": (None, "words")}, timeout=60)
    assert error(form, 415)
    assert states(delta_server) == before


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_json_by_any_spelling(delta_server: Server, content_type: str) -> None:
    headers = {"content-type": content_type}
    body = json.dumps(ADMIN["/deltas/load"])
    answer = requests.post(delta_server.url + "/deltas/load", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200


def test_without_deltas_there_is_nothing_to_load(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "--delta-admin", *CONTEXT) as server:
        assert server.get("/deltas")["data"] == []
        assert "--deltas-dir" in error(server.post("/deltas/load", {"name": "words"}), 400)


# --- what a limited key is told


def test_limited_keys_see_no_directories(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenant": ["words", "broken", "base"]}))
    options = ("--deltas-dir", delta_folder, "--delta-keys", keys, "--api-key", MASTER, *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:

        def told(key: str) -> str:
            bodies = [{"model": model, "prompt": "a", "n_predict": 1} for model in ("broken", "words")]
            answers = [ask(server, "POST", "/completion", key, json=body) for body in bodies]
            paths = ("/deltas", "/v1/models", "/v1/models/words", "/props?model=words", "/props")
            answers += [ask(server, "GET", path, key) for path in paths]
            return "\n".join(answer.text for answer in answers)

        for key, is_admin in ((MASTER, True), ("tenant", False)):
            text_of_all = told(key)
            assert text_of_all.count("broken.dq.gguf") >= 2
            for folder in (delta_folder, artefacts.base.parent):
                assert (str(folder) in text_of_all) == is_admin
