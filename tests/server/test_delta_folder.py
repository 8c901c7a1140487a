"""--deltas-dir: which of its files are models, when new ones are found, and how names look where they are shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, complete, error, make_folder, row, states, text
from tests.support.server_fixtures import Artefacts, Server, need_program, serve


def model_ids(server: Server) -> set[str]:
    return {row["id"] for row in server.get("/v1/models")["data"]}


def label_values(metrics: str) -> set[str]:
    """The values of `delta` in the Prometheus text format: backslash, quote and newline are escaped."""
    found = set()
    for line in metrics.splitlines():
        if line.startswith("#") or "{delta=" not in line:
            continue
        match = re.fullmatch(r'[a-zA-Z_:][\w:]*\{delta="((?:[^"\\]|\\["\\n])*)"\} [0-9.e+-]+', line)
        assert match, line
        found.add(match[1])
    return found


def test_what_is_no_model(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    (folder / ".cache").mkdir(parents=True)
    (folder / "folder.dq.gguf").mkdir()
    for name in (
        b"words.dq.gguf",
        b"._words.dq.gguf",
        b".hidden.dq.gguf",
        b".dq.gguf",
        b".cache/words.dq.gguf",
        b"caf\xc3\xa9.dq.gguf",
        b"\xff\xfe.dq.gguf",
        b"\xed\xa0\x80.dq.gguf",
        b"a\nb.dq.gguf",
        b"tab\t.dq.gguf",
        b'quote".dq.gguf',
        b"back\\slash.dq.gguf",
        b"x" * 240 + b".dq.gguf",
        b"words.gguf",
    ):
        shutil.copyfile(artefacts.words, os.fsencode(folder) + b"/" + name)
    os.mkfifo(folder / "fifo.dq.gguf")
    (folder / "nowhere.dq.gguf").symlink_to(folder / "nothing")
    (folder / "device.dq.gguf").symlink_to("/dev/zero")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--metrics", "--delta-admin", *CONTEXT) as server:
        assert set(states(server)) == {"words", "café"}
        assert model_ids(server) == {"words", "café", "base"}
        text(server, "café")
        answer = requests.get(server.url + "/metrics", timeout=60)
        assert label_values(answer.content.decode()) == {"words", "café"}
        for file in ("folder.dq.gguf", "fifo.dq.gguf", "device.dq.gguf", "nowhere.dq.gguf"):
            assert error(server.post("/deltas/load", {"name": "x", "file": file}), 404)
        log = server.log.read_bytes().decode()  # The log is UTF-8, whatever the files are called.
        assert "fifo.dq.gguf" in log
        assert "._words" not in log


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b".words", b"a'b", b"x" * 201])
def test_names_of_the_command_line_keep_the_same_rules(artefacts: Artefacts, name: bytes) -> None:
    command = [
        need_program("llama-server"),
        "-m",
        artefacts.base,
        "--delta",
        name + b"=" + os.fsencode(artefacts.words),
    ]
    result = subprocess.run([*command, "--port", "0"], capture_output=True, timeout=60, check=False)
    assert result.returncode == 1
    assert b"a name " in result.stderr + result.stdout


# --- links


def test_a_link_of_the_administrator_is_followed(artefacts: Artefacts, tmp_path: Path) -> None:
    """As the Hub's cache has them: snapshots/REVISION/x.dq.gguf -> ../../blobs/SHA."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0f1e"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copyfile(artefacts.words, blobs / "5a5a5a")
    (snapshot / "words.dq.gguf").symlink_to("../../blobs/5a5a5a")
    with serve(artefacts.base, tmp_path, "--deltas-dir", snapshot, "--delta-admin", *CONTEXT) as server:
        text(server, "words")
        assert server.ask("/deltas/load", name="more", file="words.dq.gguf")["state"] == "loaded"
        assert error(server.post("/deltas/load", {"name": "x", "file": "../../blobs/5a5a5a"}), 400)


def test_a_request_leaves_the_folder_by_no_link(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    shutil.copyfile(artefacts.words, tmp_path / "away" / "words.dq.gguf")
    shutil.copyfile(artefacts.words, folder / "sub" / "words.dq.gguf")
    (folder / "away").symlink_to(tmp_path / "away")
    (folder / "sub" / "up").symlink_to("../..")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as server:
        for file in ("away/words.dq.gguf", "sub/up/away/words.dq.gguf", "away"):
            assert error(server.post("/deltas/load", {"name": "x", "file": file}), 404)
        assert server.ask("/deltas/load", name="x", file="sub/words.dq.gguf")["state"] == "loaded"


# --- new files


def soon(server: Server, name: str) -> None:
    """Waits until the server has the name: the directory is read once a second at most."""
    deadline = time.monotonic() + 60
    while name not in states(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_new_file_is_found_by_a_list(delta_server: Server, artefacts: Artefacts, tmp_path: Path) -> None:
    shutil.copyfile(artefacts.json, tmp_path / "dir" / "new.dq.gguf")
    soon(delta_server, "new")
    assert states(delta_server)["new"] == "registered"
    assert "new" in model_ids(delta_server)
    text(delta_server, "new")


@pytest.mark.parametrize("path", ["/completion", "/v1/models/new"])
def test_a_new_file_is_found_by_its_name(delta_server: Server, artefacts: Artefacts, tmp_path: Path, path: str) -> None:
    def status() -> int:
        if path == "/completion":
            return complete(delta_server, "new").status_code
        return requests.get(delta_server.url + path, timeout=60).status_code

    assert status() == 404
    shutil.copyfile(artefacts.json, tmp_path / "dir" / "new.dq.gguf")
    deadline = time.monotonic() + 60
    while (found := status()) == 404 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == 200


def test_what_was_unloaded_stays_so(delta_server: Server, artefacts: Artefacts, tmp_path: Path) -> None:
    text(delta_server, "words")
    delta_server.ask("/deltas/unload", name="words")
    shutil.copyfile(artefacts.json, tmp_path / "dir" / "new.dq.gguf")
    soon(delta_server, "new")
    assert "words" not in states(delta_server)
    assert error(complete(delta_server, "words"), 404)


def test_a_folder_that_is_gone_does_not_end_what_is_there(delta_server: Server, tmp_path: Path) -> None:
    text(delta_server, "words")
    (tmp_path / "dir").rename(tmp_path / "elsewhere")
    time.sleep(1.1)
    assert "words" in states(delta_server)
    assert error(complete(delta_server, "nobody"), 404)
    text(delta_server, "words")


# files that go


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("other.dq.gguf"))


def link_to_nothing(path: Path) -> None:
    """As where the Hub's cache is pruned."""
    path.unlink()
    path.symlink_to("nothing")


def forgotten(server: Server, name: str) -> None:
    """Waits until the server has not got the name any more."""
    deadline = time.monotonic() + 10
    while name in states(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("go", [remove, rename, link_to_nothing])
def test_a_file_that_goes_takes_its_name_along(
    delta_server: Server, artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], go: Callable[[Path], None]
) -> None:
    path = tmp_path / "dir" / "json.dq.gguf"
    assert {"json", "words"} <= model_ids(delta_server)
    go(path)
    forgotten(delta_server, "json")
    assert "json" not in model_ids(delta_server)
    assert error(complete(delta_server, "json"), 404)
    path.unlink(missing_ok=True)
    shutil.copyfile(artefacts.json, path)
    soon(delta_server, "json")
    assert text(delta_server, "json") == delta_texts["json"]


def test_a_broken_file_that_goes_takes_its_name_along(delta_server: Server, tmp_path: Path) -> None:
    assert error(complete(delta_server, "broken"), 500)
    (tmp_path / "dir" / "broken.dq.gguf").unlink()
    forgotten(delta_server, "broken")
    assert error(complete(delta_server, "broken"), 404)


def test_a_loaded_delta_outlives_its_file(artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str]) -> None:
    """It serves as long as it is in memory; the list says that its file is gone."""
    folder = make_folder(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-memory", "1", *CONTEXT) as server:
        assert text(server, "words") == delta_texts["words"]
        (folder / "words.dq.gguf").rename(tmp_path / "away")
        time.sleep(1.1)
        assert row(server, "words")["reason"] == "its file is gone: the name goes when it leaves memory"
        assert text(server, "words") == delta_texts["words"]
        (tmp_path / "away").rename(folder / "words.dq.gguf")
        time.sleep(1.1)
        assert row(server, "words")["reason"] is None
        (folder / "words.dq.gguf").unlink()
        time.sleep(1.1)
        assert states(server)["words"] == "loaded"
        for name in ("json", "loud", "again"):  # there is room for three
            text(server, name)
        forgotten(server, "words")
        assert error(complete(server, "words"), 404)


def test_a_delta_of_the_command_line_keeps_its_name(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = make_folder(artefacts, tmp_path / "dir")
    options = ("--delta", f"mine={folder / 'words.dq.gguf'}", "--deltas-dir", folder, "--delta-admin")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        (folder / "words.dq.gguf").unlink()
        forgotten(server, "words")
        assert states(server)["mine"] == "loaded"
        server.ask("/deltas/load", name="named", file="json.dq.gguf")
        (folder / "json.dq.gguf").unlink()
        forgotten(server, "json")
        assert states(server)["named"] == "loaded"


# "model"


@pytest.mark.parametrize("model", [7, True, ["words"], {"name": "words"}, 1.5])
def test_a_model_that_is_no_string_is_refused(delta_server: Server, model: object) -> None:
    message = [{"role": "user", "content": "a"}]
    for path, body in {
        "/completion": {"prompt": "a", "n_predict": 1},
        "/v1/completions": {"prompt": "a", "max_tokens": 1},
        "/v1/chat/completions": {"messages": message, "max_tokens": 1},
        "/v1/chat/completions/input_tokens": {"messages": message},
        "/v1/messages": {"messages": message, "max_tokens": 1},
        "/v1/messages/count_tokens": {"messages": message},
        "/v1/responses": {"input": "a", "max_output_tokens": 1},
        "/v1/responses/input_tokens": {"input": "a"},
        "/apply-template": {"messages": message},
        "/tokenize": {"content": "a"},
        "/detokenize": {"tokens": [5]},
    }.items():
        assert '"model" must be a string' in error(delta_server.post(path, {"model": model, **body}), 400), path


def test_one_model(delta_server: Server) -> None:
    def undated(model: dict[str, Any]) -> dict[str, Any]:
        # The time is that of the answer.
        return {key: value for key, value in model.items() if key != "created"}

    listed = {row["id"]: undated(row) for row in delta_server.get("/v1/models")["data"]}
    for name, model in listed.items():
        assert undated(delta_server.get(f"/v1/models/{name}")) == model
    assert undated(delta_server.get("/v1/models/base.gguf")) == listed["base"]
    for name in ("nobody", "words/", "words/x", "%2e%2e"):
        assert error(requests.get(f"{delta_server.url}/v1/models/{name}", timeout=60), 404)


def test_one_model_whose_name_has_a_slash(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "-c", "512", "--alias", "org/tiny") as server:
        for name in ("org/tiny", "org%2Ftiny"):
            assert server.get(f"/v1/models/{name}")["id"] == "org/tiny"
        assert error(requests.get(server.url + "/v1/models/tiny", timeout=60), 404)
