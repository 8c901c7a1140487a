"""Who may load, unload and use deltas over HTTP, and what a request may name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, complete, error, states, text
from tests.support.server_fixtures import Artefacts, Server, serve

# vLLM's endpoints


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
    assert error(delta_server.post(unload, {"lora_name": "sql"}), 404)
    assert error(delta_server.post(load, {"lora_name": "sql", "lora_path": "gone.dq.gguf"}), 404)
    assert error(delta_server.post(load, {"lora_name": "sql"}), 400)


# what the network may ask for


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../base.gguf", "a/../../base.gguf", "", "a\u0000b", "..\\base.gguf", 7, None]
)
def test_paths_outside_the_folder_are_refused(delta_server: Server, path: object) -> None:
    answer = delta_server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path})
    assert error(answer, 400)
    assert "x" not in states(delta_server)


def test_links_out_of_the_folder_are_not_followed(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    (folder / "sub").mkdir(parents=True)
    (folder / "out.dq.gguf").symlink_to(artefacts.words)
    (folder / "away").symlink_to(artefacts.words.parent)
    shutil.copyfile(artefacts.words, folder / "sub" / "words.dq.gguf")
    (folder / "in.dq.gguf").symlink_to(folder / "sub" / "words.dq.gguf")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as server:
        assert list(states(server)) == ["in"]
        for file in ("out.dq.gguf", "away/words.dq.gguf"):
            assert error(server.post("/deltas/load", {"name": "x", "file": file}), 404)
        assert server.ask("/deltas/load", name="x", file="sub/words.dq.gguf")["state"] == "loaded"


@pytest.mark.parametrize("path", ["/deltas/load", "/deltas/unload", "/deltas/reload"])
@pytest.mark.parametrize("body", ["", "[1]", "{", "{}", '{"name": 3}', '{"name": ""}'])
def test_bad_bodies(delta_server: Server, path: str, body: str) -> None:
    assert error(requests.post(delta_server.url + path, data=body, timeout=60), 400)


@pytest.mark.parametrize("name", ["base", "base.gguf", "a/b", "a\nb", 'a"b', "x" * 1000])
def test_bad_names(delta_server: Server, name: str) -> None:
    assert error(delta_server.post("/deltas/load", {"name": name, "file": "words.dq.gguf"}), 400)


def test_admin_can_be_switched_off(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "--deltas-dir", delta_folder, "--no-delta-admin", *CONTEXT) as server:
        for path in ("load", "unload", "reload"):
            assert error(server.post(f"/deltas/{path}", {"name": "words"}), 403)
        assert error(server.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "words.dq.gguf"}), 403)
        assert error(server.post("/v1/unload_lora_adapter", {"lora_name": "words"}), 403)
        text(server, "words")


def test_without_deltas_there_is_nothing_to_load(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, *CONTEXT) as server:
        assert server.get("/deltas")["data"] == []
        assert "--deltas-dir" in error(server.post("/deltas/load", {"name": "words"}), 400)


# who may use what


def test_keys_limit_names(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenant": ["words"], "guest": ["base"], "nobody": []}))
    options = ("--deltas-dir", delta_folder, "--delta-keys", keys, "--api-key", "master", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:

        def status(key: str | None, model: str, header: str = "Authorization", prefix: str = "Bearer ") -> int:
            body = {"model": model, "prompt": PROMPT, "n_predict": 1}
            headers = {header: prefix + key} if key else {}
            return requests.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60).status_code

        found = {
            key: [status(key, m) for m in ("words", "json", "base")] for key in ("tenant", "guest", "nobody", "master")
        }
        assert found == {
            "tenant": [200, 403, 403],
            "guest": [403, 403, 200],
            "nobody": [403, 403, 403],
            "master": [200, 200, 200],
        }
        assert status(None, "words") == status("wrong", "words") == 401
        assert status("tenant", "json", "x-api-key", "") == 403
        assert status("tenant", "nothing") == 404

        tenant = {"Authorization": "Bearer tenant"}
        rows = requests.get(server.url + "/deltas", headers=tenant, timeout=60).json()["data"]
        assert [row["name"] for row in rows] == ["words"]
        models = requests.get(server.url + "/v1/models", headers=tenant, timeout=60).json()["data"]
        assert [model["id"] for model in models] == ["base", "words"]
        for key, expected in (("tenant", 403), ("master", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            answer = requests.post(server.url + "/deltas/unload", json={"name": "words"}, headers=headers, timeout=60)
            assert answer.status_code == expected
        assert requests.post(server.url + "/deltas/load", json={"name": "words"}, timeout=60).status_code == 401


def test_limited_keys_see_no_directories(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenant": ["words", "broken", "base"]}))
    options = ("--deltas-dir", delta_folder, "--delta-keys", keys, "--api-key", "master", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:

        def told(key: str) -> str:
            headers = {"Authorization": f"Bearer {key}"}
            bodies = [{"model": model, "prompt": PROMPT, "n_predict": 1} for model in ("broken", "words")]
            answers = [requests.post(server.url + "/completion", json=b, headers=headers, timeout=60) for b in bodies]
            paths = ("/deltas", "/v1/models", "/props?model=words")
            answers += [requests.get(server.url + path, headers=headers, timeout=60) for path in paths]
            return "\n".join(answer.text for answer in answers)

        for key, is_admin in (("master", True), ("tenant", False)):
            text_of_all = told(key)
            assert text_of_all.count("broken.dq.gguf") >= 2
            for folder in (delta_folder, artefacts.base.parent):
                assert (str(folder) in text_of_all) == is_admin
