"""The life of a delta in llama-server: registered, loaded, evicted, unloaded, reloaded, broken; and who may do that."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from server_fixtures import Artefacts, Server, serve

PROMPT = "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n"
CONTEXT = ("-np", "4", "-c", "2048", "--alias", "base")


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


def states(server: Server) -> dict[str, str]:
    return {row["name"]: row["state"] for row in server.get("/deltas")["data"]}


def stream(server: Server, model: str, n: int, started: threading.Event, **more: Any) -> str:
    """A streamed answer; `started` is set with its first token."""
    body = {
        "model": model,
        "prompt": PROMPT,
        "n_predict": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    } | more
    found = ""
    with requests.post(server.url + "/completion", json=body, stream=True, timeout=120) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                chunk = json.loads(line.removeprefix(b"data: "))
                assert "error" not in chunk, chunk
                found += chunk["content"]
                started.set()
    return found


def make_folder(artefacts: Artefacts, folder: Path) -> Path:
    """words, json, loud and again as links' targets: plain copies; and a file that is no delta."""
    folder.mkdir()
    for path in (artefacts.words, artefacts.json, artefacts.loud, artefacts.words_again):
        shutil.copyfile(path, folder / path.name)
    (folder / "broken.dq.gguf").write_bytes(artefacts.words.read_bytes()[:5000])
    (folder / "note.txt").write_text("not a delta")
    return folder


@pytest.fixture(scope="module")
def folder(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(artefacts, tmp_path_factory.mktemp("deltas") / "dir")


@pytest.fixture
def server(artefacts: Artefacts, tmp_path: Path) -> Iterator[Server]:
    """A server whose folder the test may change."""
    folder = make_folder(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


@pytest.fixture(scope="module")
def expected(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each delta says to PROMPT, by a server that has them from the start."""
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    with serve(artefacts.base, tmp_path_factory.mktemp("expected"), *deltas, *CONTEXT) as running:
        return {name: text(running, name) for name in ("base", "words", "json", "loud")}


# loading


def test_a_delta_of_the_folder_is_loaded_on_first_use(server: Server, expected: dict[str, str]) -> None:
    assert states(server) == dict.fromkeys(("again", "broken", "json", "loud", "words"), "registered")
    assert row(server, "words")["content_hash"] is None
    assert server.get("/deltas")["bytes_resident"] == 0
    assert text(server, "words") == expected["words"]

    found = row(server, "words")
    assert found["state"] == "loaded"
    assert found["parent"] == "base"
    assert len(found["content_hash"]) == 64
    assert found["bytes"] == found["bytes_resident"] == Path(found["file"]).stat().st_size
    assert found["tensors_applied"] > 0
    assert 0 < found["ratio"] < 1
    assert found["reason"] is None
    assert found["requests_running"] == 0
    assert found["requests_served"] == 1
    assert abs(found["last_used"] - time.time()) < 60
    assert states(server)["json"] == "registered"


def test_first_requests_share_one_load(server: Server, expected: dict[str, str]) -> None:
    models = ["words", "json", "loud", "base"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: text(server, model), models))
    assert found == [expected[model] for model in models]
    log = server.log.read_text()
    assert log.count("delta 'words': 2") + log.count("delta 'words': 1") == log.count("delta 'words'") == 1


def test_chat_waits_for_the_deltas_template(server: Server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert server.ask("/apply-template", model="loud", messages=messages)["prompt"] == "<<hello| c>>"
    answer = server.ask("/v1/chat/completions", model="json", messages=messages, max_tokens=4)
    assert answer["model"] == "json"


def test_a_broken_file_is_failed_and_the_server_goes_on(server: Server, expected: dict[str, str]) -> None:
    for _ in range(2):
        assert "broken.dq.gguf" in error(complete(server, "broken"), 500)
    found = row(server, "broken")
    assert found["state"] == "failed"
    assert "broken.dq.gguf" in found["reason"]
    assert "broken" not in [model["id"] for model in server.get("/v1/models")["data"]]
    assert text(server, "words") == expected["words"]

    # a good file in its place is loaded when someone says so
    good = Path(found["file"]).with_name("words.dq.gguf")
    shutil.copyfile(good, Path(found["file"]).with_suffix(".new"))
    Path(found["file"]).with_suffix(".new").rename(found["file"])
    assert complete(server, "broken").status_code == 500
    assert server.ask("/deltas/load", name="broken")["state"] == "loaded"
    assert text(server, "broken") == expected["words"]


def test_damage_that_only_digests_show_is_found(server: Server) -> None:
    path = Path(row(server, "words")["file"])
    data = bytearray(path.read_bytes())
    data[-2000] ^= 0x10
    path.write_bytes(data)
    assert "damaged" in error(complete(server, "words"), 500)
    assert states(server)["words"] == "failed"


def test_pins_and_starting(artefacts: Artefacts, folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", folder, "--delta-pin", "json", "--delta", f"mine={artefacts.words}")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        assert {name for name, state in states(server).items() if state == "loaded"} == {"json", "mine"}
        assert row(server, "json")["pinned"]
        assert not row(server, "mine")["pinned"]


# memory


def test_least_recently_used_goes(artefacts: Artefacts, folder: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.dq.gguf"))
    assert 3 * size < 2**20 < 4 * (folder / "words.dq.gguf").stat().st_size  # so three fit into 1 MiB, and four do not
    options = ("--deltas-dir", folder, "--delta-memory", "1", "--delta-pin", "words")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        for name in ("json", "loud"):
            assert text(server, name) == expected[name]
        text(server, "json")
        assert text(server, "again") == expected["words"]
        found = states(server)
        assert found["loud"] == "registered"  # the least recently used that is not pinned
        assert found["words"] == found["json"] == found["again"] == "loaded"
        assert text(server, "loud") == expected["loud"]  # and it comes back by itself
        assert states(server)["json"] == "registered"
        assert server.get("/deltas")["bytes_resident"] <= 2**20 == server.get("/deltas")["bytes_max"]


def test_many_threads_over_too_little_memory(
    artefacts: Artefacts,
    folder: Path,
    tmp_path: Path,
    expected: dict[str, str],
) -> None:
    models = ["words", "json", "again", "loud", "base"] * 6
    options = ("--deltas-dir", folder, "--delta-memory", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server, ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda model: text(server, model), models))
    assert found == [expected["words" if model == "again" else model] for model in models]


def test_what_cannot_fit_is_a_503(artefacts: Artefacts, folder: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    options = ("--deltas-dir", folder, "--delta-memory", "1", "--delta-pin", "words,json,loud")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        message = error(complete(server, "again"), 503)
        assert "does not fit" in message
        assert "pinned" in message
        assert states(server)["again"] == "registered"
        assert text(server, "json") == expected["json"]
        server.ask("/deltas/unload", name="json")
        assert text(server, "again") == expected["words"]


def test_deltas_take_turns(artefacts: Artefacts, folder: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    options = ("--deltas-dir", folder, "--delta-max-active", "1", *CONTEXT)
    models = ["words", "json", "loud"] * 4
    with serve(artefacts.base, tmp_path, *options) as server, ThreadPoolExecutor(len(models)) as pool:
        requests_done = pool.map(lambda model: text(server, model), models)
        n_seen = 0
        for _ in range(20):
            n_running = sum(1 for row in server.get("/deltas")["data"] if row["requests_running"] > 0)
            assert n_running <= 1
            n_seen += n_running
        assert list(requests_done) == [expected[model] for model in models]
        assert n_seen > 0


# unloading and reloading


def test_unload_drains(server: Server, expected: dict[str, str]) -> None:
    whole = text(server, "words", n_predict=150, ignore_eos=True)
    started = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(stream, server, "words", 150, started)
        assert started.wait(60)
        gone = pool.submit(server.post, "/deltas/unload", {"name": "words"})
        while states(server).get("words") == "loaded":
            time.sleep(0.005)
        if not running.done():
            assert row(server, "words")["state"] == "draining"
        assert "words" in error(complete(server, "words"), 404)
        assert running.result() == whole
        assert gone.result().status_code == 200
    assert "words" not in states(server)
    assert error(server.post("/deltas/unload", {"name": "words"}), 404)
    assert server.ask("/deltas/load", name="words")["state"] == "loaded"
    assert text(server, "words") == expected["words"]


def replace(server: Server, name: str, source: str) -> None:
    """Puts another delta's content under the file of `name`, as one should: by renaming."""
    path = Path(row(server, name)["file"])
    shutil.copyfile(path.with_name(f"{source}.dq.gguf"), path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_reload_swaps_under_running_requests(server: Server, expected: dict[str, str]) -> None:
    whole = text(server, "words", n_predict=150, ignore_eos=True)
    before = row(server, "words")["content_hash"]
    replace(server, "words", "json")
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, server, "words", 150, started)
        assert started.wait(60)
        assert server.ask("/deltas/reload", name="words")["content_hash"] != before
        assert text(server, "words") == expected["json"]
        assert running.result() == whole
    assert row(server, "words")["bytes_resident"] == row(server, "words")["bytes"] or wait_for_one_file(server)


def wait_for_one_file(server: Server) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = row(server, "words")
        if found["bytes_resident"] == found["bytes"]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("content", "is_kept"), [("again", True), ("json", False)])
def test_reload_keeps_the_cache_of_the_same_content_only(
    server: Server,
    expected: dict[str, str],
    content: str,
    is_kept: bool,
) -> None:
    text(server, "words", id_slot=0)
    replace(server, "words", content)
    server.ask("/deltas/reload", name="words")
    answer = complete(server, "words", id_slot=0).json()
    assert answer["content"] == expected["words" if is_kept else "json"]
    assert (answer["timings"]["cache_n"] > 5) == is_kept


def test_a_reload_that_fails_keeps_the_old_file(server: Server, expected: dict[str, str]) -> None:
    text(server, "words")
    assert "broken.dq.gguf" in error(server.post("/deltas/reload", {"name": "words", "file": "broken.dq.gguf"}), 500)
    found = row(server, "words")
    assert found["state"] == "loaded"
    assert "broken.dq.gguf" in found["reason"]
    assert found["file"].endswith("words.dq.gguf")
    assert text(server, "words") == expected["words"]
    assert server.ask("/deltas/reload", name="words", file="json.dq.gguf")["reason"] is None
    assert text(server, "words") == expected["json"]


def test_a_reload_that_fails_leaves_a_file_that_is_not_loaded(server: Server, expected: dict[str, str]) -> None:
    assert "broken.dq.gguf" in error(server.post("/deltas/reload", {"name": "words", "file": "broken.dq.gguf"}), 500)
    found = row(server, "words")
    assert found["state"] == "registered"
    assert found["file"].endswith("words.dq.gguf")
    assert text(server, "words") == expected["words"]


def test_load_with_another_file_is_no_reload(server: Server) -> None:
    server.ask("/deltas/load", name="fresh", file="words.dq.gguf", pin=True)
    assert row(server, "fresh")["pinned"]
    assert server.ask("/deltas/load", name="fresh")["state"] == "loaded"
    assert "/deltas/reload" in error(server.post("/deltas/load", {"name": "fresh", "file": "json.dq.gguf"}), 400)
    assert error(server.post("/deltas/reload", {"name": "nobody"}), 404)


def test_sleep_and_wake(artefacts: Artefacts, folder: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    options = ("--deltas-dir", folder, "--sleep-idle-seconds", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        assert text(server, "words") == expected["words"]
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.get("/deltas")["bytes_resident"] == 0
        assert text(server, "json") == expected["json"]
        assert text(server, "words") == expected["words"]


# vLLM's endpoints


def test_vllm_endpoints(server: Server, expected: dict[str, str]) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    answer = server.post(load, {"lora_name": "sql", "lora_path": "json.dq.gguf"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert text(server, "sql") == expected["json"]
    again = {"lora_name": "sql", "lora_path": "words.dq.gguf"}
    assert "already been loaded" in error(server.post(load, again), 400)
    assert server.post(load, again | {"load_inplace": True}).status_code == 200
    assert text(server, "sql") == expected["words"]
    answer = server.post(unload, {"lora_name": "sql"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert error(complete(server, "sql"), 404)
    assert error(server.post(unload, {"lora_name": "sql"}), 404)
    assert error(server.post(load, {"lora_name": "sql", "lora_path": "gone.dq.gguf"}), 404)
    assert error(server.post(load, {"lora_name": "sql"}), 400)


# what the network may ask for


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../base.gguf", "a/../../base.gguf", "", "a\u0000b", "..\\base.gguf", 7, None]
)
def test_paths_outside_the_folder_are_refused(server: Server, path: object) -> None:
    answer = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path})
    assert error(answer, 400)
    assert "x" not in states(server)


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
def test_bad_bodies(server: Server, path: str, body: str) -> None:
    assert error(requests.post(server.url + path, data=body, timeout=60), 400)


@pytest.mark.parametrize("name", ["base", "base.gguf", "a/b", "a\nb", 'a"b', "x" * 1000])
def test_bad_names(server: Server, name: str) -> None:
    assert error(server.post("/deltas/load", {"name": name, "file": "words.dq.gguf"}), 400)


def test_admin_can_be_switched_off(artefacts: Artefacts, folder: Path, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--no-delta-admin", *CONTEXT) as server:
        for path in ("load", "unload", "reload"):
            assert error(server.post(f"/deltas/{path}", {"name": "words"}), 403)
        assert error(server.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "words.dq.gguf"}), 403)
        assert error(server.post("/v1/unload_lora_adapter", {"lora_name": "words"}), 403)
        text(server, "words")


def test_without_deltas_there_is_nothing_to_load(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, *CONTEXT) as server:
        assert server.get("/deltas")["data"] == []
        assert "--deltas-dir" in error(server.post("/deltas/load", {"name": "words"}), 400)


def test_keys_limit_names(artefacts: Artefacts, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenant": ["words"], "guest": ["base"], "nobody": []}))
    options = ("--deltas-dir", folder, "--delta-keys", keys, "--api-key", "master", *CONTEXT)
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


# what is counted, and what a request gets


def metrics(server: Server) -> dict[str, float]:
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


def test_metrics(artefacts: Artefacts, folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", folder, "--delta-memory", "1", "--metrics", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        answer = complete(server, "words", cache_prompt=False).json()
        for name in ("words", "json", "loud", "again"):
            text(server, name)
        complete(server, "broken")
        server.ask("/deltas/unload", name="json")
        found = metrics(server)

        def of(what: str, name: str) -> float:
            return found[f'llamacpp:delta_{what}{{delta="{name}"}}']

        assert of("requests_total", "words") == 2
        assert of("requests_total", "json") == 1
        assert of("tokens_predicted_total", "words") == 2 * answer["timings"]["predicted_n"]
        assert of("prompt_tokens_total", "words") >= answer["timings"]["prompt_n"]
        assert of("loads_total", "json") == 1  # still there, though it is unloaded
        assert of("evictions_total", "words") == 1
        assert of("load_failures_total", "broken") == 1
        assert 0 < of("load_seconds_total", "words") < 60
        assert of("resident_bytes", "words") == 0
        assert of("resident_bytes", "loud") == row(server, "loud")["bytes"]
        assert of("requests_running", "loud") == 0
        assert found["llamacpp:deltas_requests_total"] == 5
        assert found["llamacpp:deltas_loads_total"] == 4
        assert found["llamacpp:deltas_resident_bytes"] == server.get("/deltas")["bytes_resident"]


def test_life_is_logged(server: Server) -> None:
    text(server, "words")
    server.ask("/deltas/unload", name="words")
    log = server.log.read_text()
    for part in (
        "deltas: 5, 0.0 MiB loaded",
        "--delta-memory: no limit",
        "weights applied",
        "'words': unloading",
        "'words': freed",
    ):
        assert part in log


def test_props_of_a_model(server: Server) -> None:
    base, loud = server.get("/props"), server.get("/props?model=loud")
    assert base == server.get("/props?model=base")
    assert base["model_alias"] == "base"
    assert loud["model_alias"] == "loud"
    assert loud["model_path"].endswith("loud.dq.gguf")
    assert "<<" in loud["chat_template"]
    assert "<<" not in base["chat_template"]
    assert len(loud["delta"]["content_hash"]) == 64
    defaults = [props["default_generation_settings"]["params"] for props in (base, loud)]
    assert [(d["top_k"], d["temperature"]) for d in defaults] == [(40, pytest.approx(0.8)), (7, 0.25)]
    answer = server.ask("/completion", model="loud", prompt=PROMPT, n_predict=1, top_k=9)
    assert answer["generation_settings"]["top_k"] == 9  # the request's own come first
    assert answer["generation_settings"]["temperature"] == 0.25
    assert error(requests.get(server.url + "/props?model=nobody", timeout=60), 404)


def test_waiting_for_a_load_keeps_the_server_awake(artefacts: Artefacts, folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", folder, "--sleep-idle-seconds", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.get("/props?model=words")["model_alias"] == "words"
        assert server.ask("/deltas/load", name="json")["state"] == "loaded"
