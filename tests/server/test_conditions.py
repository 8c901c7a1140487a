"""Several controllers that change the same name: the generation tells of every load, and a condition on the content lets one of them win."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, error, row, states, text
from tests.support.server_fixtures import Artefacts, Server, serve

OTHER = "0" * 64


def change(server: Server, path: str, **body: Any) -> requests.Response:
    return server.post(path, body)


def test_generation_grows_with_each_load_and_never_goes_back(delta_server: Server) -> None:
    assert row(delta_server, "words")["generation"] == 0
    assert row(delta_server, "words")["content_hash"] is None
    text(delta_server, "words")
    assert row(delta_server, "words")["generation"] == 1
    text(delta_server, "words")
    assert row(delta_server, "words")["generation"] == 1  # Nothing was loaded for the second request.
    assert delta_server.ask("/deltas/reload", name="words", file="json.dq.gguf")["generation"] == 2
    delta_server.ask("/deltas/unload", name="words")
    assert "words" not in states(delta_server)
    assert delta_server.ask("/deltas/load", name="words")["generation"] == 3
    assert error(change(delta_server, "/deltas/reload", name="words", file="broken.dq.gguf"), 500)
    assert row(delta_server, "words")["generation"] == 3  # What could not be loaded is no generation.


def test_generation_counts_a_load_after_an_eviction(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "--deltas-dir", delta_folder, "--delta-memory", "1", *CONTEXT) as server:
        for name in ("words", "json", "loud", "again"):
            text(server, name)
        assert states(server)["words"] == "registered"
        assert row(server, "words")["generation"] == 1
        text(server, "words")
        assert row(server, "words")["generation"] == 2


def test_generation_counts_a_file_that_the_watch_found_again(delta_server: Server) -> None:
    path = delta_server.log.parent / "dir" / "words.dq.gguf"
    hidden = path.with_name("hidden")
    text(delta_server, "words")
    path.rename(hidden)
    deadline = time.monotonic() + 60
    while not row(delta_server, "words")["reason"]:  # The look that misses the file.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    delta_server.ask("/deltas/unload", name="words")
    hidden.rename(path)
    while "words" not in states(delta_server):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert row(delta_server, "words")["generation"] == 1
    text(delta_server, "words")
    assert row(delta_server, "words")["generation"] == 2


@pytest.mark.parametrize("path", ["/deltas/load", "/deltas/reload", "/deltas/unload"])
def test_a_condition_that_does_not_hold_changes_nothing(delta_server: Server, path: str) -> None:
    found = delta_server.ask("/deltas/load", name="words")
    message = error(change(delta_server, path, name="words", if_content_hash=OTHER), 412)
    assert re.fullmatch(f".*{found['content_hash']}.*{OTHER}.*", message)
    assert row(delta_server, "words") == found


@pytest.mark.parametrize("path", ["/deltas/load", "/deltas/reload"])
def test_a_name_without_a_load_meets_no_condition(delta_server: Server, path: str) -> None:
    assert "no content hash" in error(change(delta_server, path, name="words", if_content_hash=OTHER), 412)
    assert states(delta_server)["words"] == "registered"
    for name in ("gone", "new"):
        body = {"name": name, "file": "words.dq.gguf", "if_content_hash": OTHER}
        assert "does not exist" in error(delta_server.post(path, body), 404)
        assert name not in states(delta_server)


def test_a_condition_that_holds_lets_the_change_happen(delta_server: Server, delta_texts: dict[str, str]) -> None:
    old = delta_server.ask("/deltas/load", name="words")["content_hash"]
    new = delta_server.ask("/deltas/reload", name="words", file="json.dq.gguf", if_content_hash=old.upper())
    assert new["content_hash"] != old
    assert text(delta_server, "words") == delta_texts["json"]
    assert delta_server.ask("/deltas/load", name="words", if_content_hash=new["content_hash"])["generation"] == 2
    delta_server.ask("/deltas/unload", name="words", if_content_hash=new["content_hash"])
    assert "words" not in states(delta_server)


@pytest.mark.parametrize("path", ["/deltas/load", "/deltas/reload", "/deltas/unload"])
@pytest.mark.parametrize("value", ["", "abc", "g" * 64, "0" * 63, "0" * 65, 7, True, [], {}])
def test_what_is_no_content_hash_is_refused(delta_server: Server, path: str, value: object) -> None:
    assert "if_content_hash" in error(change(delta_server, path, name="words", if_content_hash=value), 400)


def test_a_blend_has_no_content_hash(delta_server: Server) -> None:
    delta_server.ask("/deltas/blend", name="mix", spec="words*0.5+json*0.5")
    assert "blend" in error(change(delta_server, "/deltas/unload", name="mix", if_content_hash=OTHER), 400)
    assert [blend["name"] for blend in delta_server.get("/deltas")["blends"]] == ["mix"]


def test_one_of_several_controllers_wins(delta_server: Server) -> None:
    seen = delta_server.ask("/deltas/load", name="again")["content_hash"]
    for i, file in enumerate(("json.dq.gguf", "words.dq.gguf", "json.dq.gguf", "words.dq.gguf")):
        body = {"name": "again", "file": file, "if_content_hash": seen}
        answers: list[int] = []
        start = threading.Barrier(4)

        def controller(
            body: dict[str, Any] = body, answers: list[int] = answers, start: threading.Barrier = start
        ) -> None:
            start.wait()
            answers.append(delta_server.post("/deltas/reload", body).status_code)

        threads = [threading.Thread(target=controller) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200, 412, 412, 412]
        found = row(delta_server, "again")
        assert found["content_hash"] != seen
        assert found["generation"] == i + 2
        seen = found["content_hash"]
