"""Files that behave badly while a server reads them: their file system does not answer, or they change under the reader."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, complete, error, make_folder, row, states, text
from tests.support.server_fixtures import Artefacts, Server, serve

BAD_FILES = Path(__file__).with_name("bad_files.c")
SERVER_TIMEOUT = 60  # seconds in which a request that must be answered is


@pytest.fixture
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Servers started under this have files that behave as variables of bad_files.c say, which it sets."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "bad_files.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, BAD_FILES, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return monkeypatch


@pytest.fixture
def hanging(bad_files: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Once the returned path exists, servers wait for ever for files whose names begin with hangs."""
    bad_files.setenv("HANG", "/hangs")
    bad_files.setenv("HANG_SINCE", str(tmp_path / "since"))
    return tmp_path / "since"


def folder_that_hangs(artefacts: Artefacts, path: Path) -> Path:
    folder = make_folder(artefacts, path)
    shutil.copyfile(artefacts.words, folder / "hangs.dq.gguf")
    return folder


def ask_and_go(server: Server, model: str) -> None:
    """A request whose client does not wait for the answer."""
    with pytest.raises(requests.Timeout):
        requests.post(
            server.url + "/completion", json={"model": model, "prompt": PROMPT, "n_predict": 1}, timeout=(5, 0.5)
        )


def test_a_load_that_hangs_stops_nobody(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], hanging: Path
) -> None:
    """Others are loaded meanwhile, the name can be unloaded, and SIGTERM ends the server (serve waits for that)."""
    folder = folder_that_hangs(artefacts, tmp_path / "dir")
    with (
        serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        hanging.touch()
        ask_and_go(server, "hangs")
        assert text(server, "base") == delta_texts["base"]
        assert text(server, "words") == delta_texts["words"]
        waiting = pool.submit(complete, server, "hangs")
        while states(server)["hangs"] != "loading":
            time.sleep(0.01)
        server.ask("/deltas/unload", name="hangs")
        assert "unloaded" in error(waiting.result(), 404)
        server.ask("/deltas/load", name="loud")


def test_what_hangs_is_a_503_in_the_end(artefacts: Artefacts, tmp_path: Path, hanging: Path) -> None:
    folder = folder_that_hangs(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as server:
        hanging.touch()
        answer = requests.post(
            server.url + "/completion",
            json={"model": "hangs", "prompt": PROMPT, "n_predict": 1},
            timeout=SERVER_TIMEOUT,
        )
        assert "does not answer" in error(answer, 503)
        assert states(server)["hangs"] == "registered"  # it may come back


def test_a_load_that_hangs_does_not_keep_the_server_awake_or_asleep(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], hanging: Path
) -> None:
    folder = folder_that_hangs(artefacts, tmp_path / "dir")
    options = ("--deltas-dir", folder, "--sleep-idle-seconds", "1", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server:
        hanging.touch()
        ask_and_go(server, "hangs")
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.get("/props")["is_sleeping"]
        assert text(server, "words") == delta_texts["words"]


@pytest.mark.parametrize("body", [{"name": "hangs"}, {"name": "x", "file": "hangs-too.dq.gguf"}])
def test_a_call_of_the_administrator_does_not_hang(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], hanging: Path, body: dict[str, str]
) -> None:
    """To look at a file can hang as well as to open it."""
    folder = folder_that_hangs(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as server:
        shutil.copyfile(artefacts.words, folder / "hangs-too.dq.gguf")
        hanging.touch()
        answer = requests.post(server.url + "/deltas/load", json=body, timeout=SERVER_TIMEOUT)
        assert "does not answer" in error(answer, 503)
        assert text(server, "words") == delta_texts["words"]


def test_a_folder_that_hangs_keeps_no_list_back(artefacts: Artefacts, tmp_path: Path, hanging: Path) -> None:
    folder = folder_that_hangs(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as server, ThreadPoolExecutor(8) as pool:
        time.sleep(1.1)  # the folder is read once a second at most
        shutil.copyfile(artefacts.words, folder / "hangs-too.dq.gguf")
        hanging.touch()
        urls = [f"{server.url}/{path}" for path in ("deltas", "v1/models", "v1/models/nobody", "deltas")]
        answers = list(pool.map(lambda url: requests.get(url, timeout=SERVER_TIMEOUT), urls))
        assert [answer.status_code for answer in answers] == [200, 200, 404, 200]
        assert error(complete(server, "nobody"), 404)
        assert "does not answer" in server.log.read_text()


# files that change while they are read


@pytest.fixture
def torn(artefacts: Artefacts, tmp_path: Path, bad_files: pytest.MonkeyPatch) -> Path:
    """A folder with torn.dq.gguf, whose bytes are a file's before its copy is complete; reads of it put TEAR_WITH in its place."""
    folder = make_folder(artefacts, tmp_path / "dir")
    whole = artefacts.words.read_bytes()
    (folder / "torn.dq.gguf").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    bad_files.setenv("TEAR", "/torn.dq.gguf")
    return folder


def test_a_file_that_changes_while_it_is_read_is_read_again(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], torn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first read got has wrong digests, and is not the file's content any more."""
    monkeypatch.setenv("TEAR_WITH", str(artefacts.words))
    monkeypatch.setenv("TEAR_FIRST", "1")  # read 0 is of its header, to find out its size
    monkeypatch.setenv("TEAR_LAST", "1")
    with serve(artefacts.base, tmp_path, "--deltas-dir", torn, *CONTEXT) as server:
        assert text(server, "torn") == delta_texts["words"]


def test_a_file_that_changes_all_the_time_is_given_up(
    tmp_path: Path, artefacts: Artefacts, torn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(torn / "torn.dq.gguf", tmp_path / "half")
    monkeypatch.setenv("TEAR_WITH", str(tmp_path / "half"))
    monkeypatch.setenv("TEAR_FIRST", "0")
    monkeypatch.setenv("TEAR_LAST", "1000000")
    with serve(artefacts.base, tmp_path, "--deltas-dir", torn, *CONTEXT) as server:
        assert "changes again and again" in error(complete(server, "torn"), 500)


@pytest.mark.parametrize("n_bytes", [0, 5000, 100000, None])
def test_a_file_that_was_refused_is_tried_again_when_it_changes(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], n_bytes: int | None
) -> None:
    """As where a request comes in the middle of a copy; None: all bytes are there, the second half not written yet."""
    folder = make_folder(artefacts, tmp_path / "dir")
    whole = artefacts.words.read_bytes()
    half = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    (folder / "copied.dq.gguf").write_bytes(half if n_bytes is None else whole[:n_bytes])
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as server:
        for _ in range(2):
            assert error(complete(server, "copied"), 500)
            assert row(server, "copied")["state"] == "failed"
            time.sleep(1.1)
        (folder / "copied.dq.gguf").write_bytes(whole)
        time.sleep(1.1)
        assert text(server, "copied") == delta_texts["words"]
