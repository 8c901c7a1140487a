"""The life of a delta in llama-server: registered, loaded, evicted, unloaded, reloaded, broken, and asleep with the server."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import (
    CONTEXT,
    PROMPT,
    complete,
    error,
    idle_row,
    row,
    states,
    stream,
    text,
    whole_answer,
)
from tests.support.logprobs import assert_same_answer
from tests.support.server_fixtures import Artefacts, Server, serve

# --- loading


def test_a_delta_of_the_folder_is_loaded_on_first_use(delta_server: Server, delta_texts: dict[str, str]) -> None:
    assert states(delta_server) == dict.fromkeys(("again", "broken", "json", "loud", "words"), "registered")
    assert row(delta_server, "words")["content_hash"] is None
    assert delta_server.get("/deltas")["bytes_resident"] == 0
    assert text(delta_server, "words") == delta_texts["words"]

    found = idle_row(delta_server, "words")
    assert found["state"] == "loaded"
    assert found["parent"] == "base"
    assert len(found["content_hash"]) == 64
    assert found["bytes"] == found["bytes_resident"] == Path(found["file"]).stat().st_size
    assert found["memory"] == {"CPU": found["bytes"]}
    assert found["tensors_applied"] > 0
    assert 0 < found["ratio"] < 1
    assert found["reason"] is None
    assert found["requests_served"] == 1
    assert abs(found["last_used"] - time.time()) < 60
    assert states(delta_server)["json"] == "registered"


def test_first_requests_share_one_load(delta_server: Server, delta_texts: dict[str, str]) -> None:
    models = ["words", "json", "loud", "base"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: text(delta_server, model), models))
    assert found == [delta_texts[model] for model in models]
    log = delta_server.log.read_text()
    assert log.count("delta 'words': 2") + log.count("delta 'words': 1") == log.count("delta 'words'") == 1


def test_chat_waits_for_the_deltas_template(delta_server: Server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert delta_server.ask("/apply-template", model="loud", messages=messages)["prompt"] == "<<hello| c>>"
    answer = delta_server.ask("/v1/chat/completions", model="json", messages=messages, max_tokens=4)
    assert answer["model"] == "json"


def test_a_broken_file_is_failed_and_the_server_goes_on(delta_server: Server, delta_texts: dict[str, str]) -> None:
    for _ in range(2):
        assert "broken.dq.gguf" in error(complete(delta_server, "broken"), 500)
    found = row(delta_server, "broken")
    assert found["state"] == "failed"
    assert "broken.dq.gguf" in found["reason"]
    assert "broken" not in [model["id"] for model in delta_server.get("/v1/models")["data"]]
    assert text(delta_server, "words") == delta_texts["words"]

    # A good file in its place is loaded when someone says so.
    good = Path(found["file"]).with_name("words.dq.gguf")
    shutil.copyfile(good, Path(found["file"]).with_suffix(".new"))
    Path(found["file"]).with_suffix(".new").rename(found["file"])
    assert complete(delta_server, "broken").status_code == 500
    assert delta_server.ask("/deltas/load", name="broken")["state"] == "loaded"
    assert text(delta_server, "broken") == delta_texts["words"]


def test_damage_that_only_digests_show_is_found(delta_server: Server) -> None:
    path = Path(row(delta_server, "words")["file"])
    data = bytearray(path.read_bytes())
    data[-2000] ^= 0x10
    path.write_bytes(data)
    assert "damaged" in error(complete(delta_server, "words"), 500)
    assert states(delta_server)["words"] == "failed"


def test_pins_and_starting(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-pin", "json", "--delta", f"mine={artefacts.words}")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        assert {name for name, state in states(server).items() if state == "loaded"} == {"json", "mine"}
        assert row(server, "json")["pinned"]
        assert not row(server, "mine")["pinned"]


# --- memory


def test_least_recently_used_goes(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]
) -> None:
    size = max(path.stat().st_size for path in delta_folder.glob("*.dq.gguf"))
    assert (
        3 * size < 2**20 < 4 * (delta_folder / "words.dq.gguf").stat().st_size
    )  # Three fit into 1 MiB, and four do not.
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1", "--delta-pin", "words")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        for name in ("json", "loud"):
            assert text(server, name) == delta_texts[name]
        text(server, "json")
        assert text(server, "again") == delta_texts["words"]
        found = states(server)
        assert found["loud"] == "registered"  # It is the least recently used that is not pinned.
        assert found["words"] == found["json"] == found["again"] == "loaded"
        assert text(server, "loud") == delta_texts["loud"]  # It comes back by itself.
        assert states(server)["json"] == "registered"
        assert server.get("/deltas")["bytes_resident"] <= 2**20 == server.get("/deltas")["bytes_max"]


def test_many_threads_over_too_little_memory(
    artefacts: Artefacts,
    delta_folder: Path,
    tmp_path: Path,
    delta_texts: dict[str, str],
) -> None:
    models = ["words", "json", "again", "loud", "base"] * 6
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server, ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda model: text(server, model), models))
    assert found == [delta_texts["words" if model == "again" else model] for model in models]


def test_what_cannot_fit_is_a_503(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]
) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1", "--delta-pin", "words,json,loud", "--delta-admin")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        message = error(complete(server, "again"), 503)
        assert "does not fit" in message
        assert "pinned" in message
        assert states(server)["again"] == "registered"
        assert text(server, "json") == delta_texts["json"]
        server.ask("/deltas/unload", name="json")
        assert text(server, "again") == delta_texts["words"]


def test_deltas_take_turns(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]
) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-max-active", "1", *CONTEXT)
    models = ["words", "json", "loud"] * 4
    with serve(artefacts.base, tmp_path, *options) as server, ThreadPoolExecutor(len(models)) as pool:
        answers = [pool.submit(text, server, model) for model in models]
        n_seen = 0
        while not all(answer.done() for answer in answers):
            n_running = sum(1 for row in server.get("/deltas")["data"] if row["requests_running"] > 0)
            assert n_running <= 1
            n_seen += n_running
        assert [answer.result() for answer in answers] == [delta_texts[model] for model in models]
        assert n_seen > 0


def test_requests_that_wait_do_not_block_others(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]
) -> None:
    """More requests than the server has HTTP threads at its start wait for a turn; /health answers meanwhile."""
    options = ("--deltas-dir", delta_folder, "--delta-max-active", "1", "--threads-http", "2", "--context-shift")
    endless = {"model": "words", "prompt": PROMPT, "n_predict": -1, "ignore_eos": True, "stream": True}
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server, ThreadPoolExecutor(24) as pool:
        with requests.post(server.url + "/completion", json=endless, stream=True, timeout=120) as running:
            lines = running.iter_lines()  # It is kept, because the answer ends with it.
            assert next(lines)
            waiting = [pool.submit(text, server, "json") for _ in range(24)]
            while row(server, "json")["state"] != "loaded":
                time.sleep(0.01)
            for _ in range(50):
                assert server.get("/health") == {"status": "ok"}
            assert not any(request.done() for request in waiting)
        assert {request.result() for request in waiting} == {delta_texts["json"]}


# --- unloading and reloading


def test_unload_drains(delta_server: Server, delta_texts: dict[str, str]) -> None:
    whole = whole_answer(delta_server, "words", 150)
    started = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(stream, delta_server, "words", 150, started)
        assert started.wait(60)
        gone = pool.submit(delta_server.post, "/deltas/unload", {"name": "words"})
        while states(delta_server).get("words") == "loaded":
            time.sleep(0.005)
        if not running.done():
            assert row(delta_server, "words")["state"] == "draining"
        assert "words" in error(complete(delta_server, "words"), 404)
        assert_same_answer(running.result(), whole, n_least=20)
        assert gone.result().status_code == 200
    assert "words" not in states(delta_server)
    assert error(delta_server.post("/deltas/unload", {"name": "words"}), 404)
    assert delta_server.ask("/deltas/load", name="words")["state"] == "loaded"
    assert text(delta_server, "words") == delta_texts["words"]


def replace(server: Server, name: str, source: str) -> None:
    """Puts another delta's content under the file of `name`, as one should: by renaming."""
    path = Path(row(server, name)["file"])
    shutil.copyfile(path.with_name(f"{source}.dq.gguf"), path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_reload_swaps_under_running_requests(delta_server: Server, delta_texts: dict[str, str]) -> None:
    whole = whole_answer(delta_server, "words", 150)
    before = row(delta_server, "words")["content_hash"]
    replace(delta_server, "words", "json")
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, delta_server, "words", 150, started)
        assert started.wait(60)
        assert delta_server.ask("/deltas/reload", name="words")["content_hash"] != before
        assert text(delta_server, "words") == delta_texts["json"]
        assert_same_answer(running.result(), whole, n_least=20)
    assert row(delta_server, "words")["bytes_resident"] == row(delta_server, "words")["bytes"] or wait_for_one_file(
        delta_server
    )


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
    delta_server: Server,
    delta_texts: dict[str, str],
    content: str,
    is_kept: bool,
) -> None:
    text(delta_server, "words", id_slot=0)
    replace(delta_server, "words", content)
    delta_server.ask("/deltas/reload", name="words")
    answer = complete(delta_server, "words", id_slot=0).json()
    assert answer["content"] == delta_texts["words" if is_kept else "json"]
    assert (answer["timings"]["cache_n"] > 5) == is_kept


def test_a_reload_that_fails_keeps_the_old_file(delta_server: Server, delta_texts: dict[str, str]) -> None:
    text(delta_server, "words")
    assert "broken.dq.gguf" in error(
        delta_server.post("/deltas/reload", {"name": "words", "file": "broken.dq.gguf"}), 500
    )
    found = row(delta_server, "words")
    assert found["state"] == "loaded"
    assert "broken.dq.gguf" in found["reason"]
    assert found["file"].endswith("words.dq.gguf")
    assert text(delta_server, "words") == delta_texts["words"]
    assert delta_server.ask("/deltas/reload", name="words", file="json.dq.gguf")["reason"] is None
    assert text(delta_server, "words") == delta_texts["json"]


def test_a_reload_that_fails_leaves_a_file_that_is_not_loaded(
    delta_server: Server, delta_texts: dict[str, str]
) -> None:
    assert "broken.dq.gguf" in error(
        delta_server.post("/deltas/reload", {"name": "words", "file": "broken.dq.gguf"}), 500
    )
    found = row(delta_server, "words")
    assert found["state"] == "registered"
    assert found["file"].endswith("words.dq.gguf")
    assert text(delta_server, "words") == delta_texts["words"]


def test_load_with_another_file_is_no_reload(delta_server: Server) -> None:
    delta_server.ask("/deltas/load", name="fresh", file="words.dq.gguf", pin=True)
    assert row(delta_server, "fresh")["pinned"]
    assert delta_server.ask("/deltas/load", name="fresh")["state"] == "loaded"
    assert "/deltas/reload" in error(delta_server.post("/deltas/load", {"name": "fresh", "file": "json.dq.gguf"}), 400)
    assert error(delta_server.post("/deltas/reload", {"name": "nobody"}), 404)


# --- sleeping


def test_sleep_and_wake(artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str]) -> None:
    options = ("--deltas-dir", delta_folder, "--sleep-idle-seconds", "1", "--delta-admin", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        assert text(server, "words") == delta_texts["words"]
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.get("/deltas")["bytes_resident"] == 0
        assert text(server, "json") == delta_texts["json"]
        assert text(server, "words") == delta_texts["words"]


def test_waiting_for_a_load_keeps_the_server_awake(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--sleep-idle-seconds", "1", "--delta-admin", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.get("/props?model=words")["model_alias"] == "words"
        assert server.ask("/deltas/load", name="json")["state"] == "loaded"
