"""Deltas that clients load by address: `dqrelo-server --load-from`, with a web server and a Hub on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from dqrelo_gguf.address import settings
from tests.support.delta_server import complete, error, row, states
from tests.support.hub_server import TOKEN, HubServer
from tests.support.keys import MASTER, ask
from tests.support.programs import need_program
from tests.support.server_fixtures import Server, serve
from tests.support.web_server import Handler, Rule, Served, WebServer, redirect, serving

LAUNCHER = (sys.executable, "-c", "import sys; from dqrelo_gguf.cli.server import main; sys.exit(main())")
LOAD, RELOAD, VLLM = "/deltas/load", "/deltas/reload", "/v1/load_lora_adapter"
SIGNATURE = "X-Signature=very-secret"
OPTIONS = ("-c", "256", "-np", "2", "--alias", "base")


@pytest.fixture
def web(narrow_deltas: list[Path]) -> Iterator[WebServer]:
    with serving(WebServer()) as server:
        for path in narrow_deltas:
            served = Served.of(path.read_bytes(), headers={"x-amz-checksum-sha256": _sha256(path.read_bytes())})
            server.files[f"/deltas/{path.name}"] = server.files[f"/other/{path.name}"] = served
        yield server


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@pytest.fixture
def hub(narrow_deltas: list[Path]) -> Iterator[HubServer]:
    with serving(HubServer()) as server:
        assert isinstance(server, HubServer)
        server.put("org/math", {"math.dq.gguf": narrow_deltas[0].read_bytes(), "README.md": b"card"})
        yield server


@pytest.fixture(autouse=True)
def surroundings(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own and the Hub of this test, in the environment of the server."""
    for name in (settings.OFFLINE, settings.HUB_OFFLINE, settings.ALLOW_HTTP, settings.MAX_DOWNLOAD):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        settings.CACHE: str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, value)


@contextmanager
def server_with(base: Path, folder: Path, *options: str | Path) -> Iterator[Server]:
    """A server by dqrelo-server. Its log must hold no credentials."""
    log = None
    with serve(base, folder, *OPTIONS, *options, launcher=LAUNCHER) as server:
        log = server.log
        # One process that answers, and one that starts it again.
        wait_until(lambda: "--load-from" not in options or len(descendants(server.process.pid)) == 2)
        yield server
    said = log.read_text()
    assert "secret" not in said, said
    assert TOKEN not in said


@pytest.fixture
def server(narrow_base: Path, tmp_path: Path, web: WebServer) -> Iterator[Server]:
    prefixes = ("--load-from", f"{web.url}/deltas/", "--load-from", "hf://org/")
    with server_with(narrow_base, tmp_path, *prefixes, "--delta-admin", "--load-max-size", "1") as running:
        yield running


def descendants(process: int) -> list[int]:
    """All processes that a process started, and those that they started."""
    return [found for child in children(process) for found in (child, *descendants(child))]


def children(process: int) -> list[int]:
    """The processes that any thread of a process started."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # The thread has ended.
            found += map(int, path.read_text().split())
    return found


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stalled:
    """A file of which only the beginning comes until it may go on."""

    def __init__(self, web: WebServer, path: str) -> None:
        self.came = threading.Event()
        self.may_go = threading.Event()
        served = web.files[path]

        def stall(handler: Handler) -> None:
            if handler.headers.get("Range") != "bytes=0-0":
                self.came.set()
                self.may_go.wait(60)
            handler.send_file(served)

        web.rules.append(Rule(path, stall))


# --- what works


def test_a_delta_of_a_web_server(server: Server, web: WebServer, narrow_deltas: list[Path]) -> None:
    found = server.ask(LOAD, name="sql", uri=f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}")
    assert found["state"] == "loaded"
    assert Path(found["file"]).read_bytes() == narrow_deltas[0].read_bytes()
    assert complete(server, "sql").status_code == 200
    assert all(SIGNATURE in request.path for request in web.requests)
    # Again: nothing is fetched, and nothing changes. Then another file, in place of the loaded one.
    n = web.count("/deltas/")
    assert server.ask(LOAD, name="sql", uri=f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}")["generation"] == 1
    assert web.count("/deltas/") == n + 1  # It was only asked for its version.
    assert "another file" in error(server.post(LOAD, {"name": "sql", "uri": f"{web.url}/deltas/words.dq.gguf"}), 400)
    other = server.ask(RELOAD, name="sql", uri=f"{web.url}/deltas/words.dq.gguf", if_content_hash=found["content_hash"])
    assert other["content_hash"] != found["content_hash"]
    assert error(
        server.post(RELOAD, {"name": "sql", "uri": f"{web.url}/deltas/math.dq.gguf", "if_content_hash": "0" * 64}), 412
    )


def test_a_delta_of_the_hub_as_vllms_clients_ask(server: Server, hub: HubServer) -> None:
    body = {"lora_name": "sql", "lora_path": "hf://org/math"}
    assert server.post(VLLM, body).text == "Success: LoRA adapter 'sql' added successfully."
    assert row(server, "sql")["state"] == "loaded"
    n = len(hub.requests)
    assert server.post(VLLM, body).json()["type"] == "InvalidUserInput"
    assert len(hub.requests) == n
    assert server.post(VLLM, body | {"load_inplace": True}).status_code == 200
    assert row(server, "sql")["generation"] == 2
    assert f"hf://org/math/math.dq.gguf@{hub.repositories['org/math'].refs['main']}" in server.log.read_text()


def test_a_folder_of_deltas_beside(
    narrow_base: Path, narrow_deltas: list[Path], tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_LOAD_FROM", f"hf://org/,{web.url}/deltas/")
    with server_with(narrow_base, tmp_path, "--deltas-dir", narrow_deltas[0].parent, "--delta-admin") as server:
        assert states(server) == {"math": "registered", "words": "registered"}
        assert server.ask(LOAD, name="sql", uri=f"{web.url}/deltas/math.dq.gguf")["state"] == "loaded"
        assert server.ask(LOAD, name="sql2", file="words.dq.gguf")["state"] == "loaded"
        both = {"name": "a", "file": "words.dq.gguf", "uri": f"{web.url}/deltas/math.dq.gguf"}
        assert "not both" in error(server.post(LOAD, both), 400)
        assert '"uri"' in error(server.post(LOAD, {"name": "a", "file": both["uri"]}), 400)


# --- what is refused


def test_it_is_off_where_nobody_asked_for_it(
    narrow_base: Path, narrow_deltas: list[Path], tmp_path: Path, web: WebServer
) -> None:
    address = f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}"
    with server_with(narrow_base, tmp_path, "--deltas-dir", narrow_deltas[0].parent, "--delta-admin") as server:
        assert descendants(server.process.pid) == []
        for path, body in (
            (LOAD, {"name": "sql", "uri": address}),
            (RELOAD, {"name": "math", "uri": address}),
            (VLLM, {"lora_name": "sql", "lora_path": address}),
        ):
            assert "--load-from" in error(server.post(path, body), 403)
    assert web.requests == []


def test_who_may_not_load_does_not_load_by_address(narrow_base: Path, tmp_path: Path, web: WebServer) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenant": ["sql"]}))
    options = ("--load-from", f"{web.url}/deltas/", "--delta-keys", keys, "--api-key", MASTER)
    body = {"name": "sql", "uri": f"{web.url}/deltas/math.dq.gguf"}
    vllm = {"lora_name": "sql", "lora_path": body["uri"]}
    with server_with(narrow_base, tmp_path, *options) as server:
        for path, sent in ((LOAD, body), (RELOAD, body), (VLLM, vllm)):
            assert ask(server, "POST", path, None, json=sent).status_code == 401
            assert ask(server, "POST", path, "tenant", json=sent).status_code == 403
        assert web.requests == []
        assert ask(server, "POST", LOAD, MASTER, json=body).status_code == 200
        seen = ask(server, "GET", "/deltas", "tenant").json()["data"][0]
        assert seen["file"] == "math.dq.gguf"
    with server_with(narrow_base, tmp_path, "--load-from", f"{web.url}/deltas/") as server:
        assert "--delta-admin" in error(server.post(LOAD, body), 403)
    with server_with(
        narrow_base, tmp_path, "--load-from", f"{web.url}/", "--api-key", MASTER, "--no-delta-admin"
    ) as server:
        assert ask(server, "POST", LOAD, MASTER, json=body).status_code == 403


def test_what_is_not_below_a_prefix(server: Server, web: WebServer) -> None:
    host = web.url.removeprefix("http://")
    for address, status in (
        (f"{web.url}/other/math.dq.gguf", 403),
        (f"{web.url}/deltas2/math.dq.gguf", 403),
        (f"{web.url}/deltas/..;/other/math.dq.gguf", 403),
        (f"{web.url}/deltas/%252e%252e/other/math.dq.gguf", 403),
        (f"{web.url}/deltas%2F..%2Fother/math.dq.gguf", 400),
        (f"{web.url}/deltas/../other/math.dq.gguf", 400),
        (f"{web.url}/deltas/%2e%2e/other/math.dq.gguf", 400),
        (f"http://user:very-secret@{host}/deltas/math.dq.gguf", 400),
        (f"http://{host}\\@evil/deltas/math.dq.gguf", 400),
        (f"http://localhost:{host.partition(':')[2]}/deltas/math.dq.gguf", 403),
        ("http://127.0.0.1/deltas/math.dq.gguf", 403),
        (f"https://{host}/deltas/math.dq.gguf", 403),
        ("http://169.254.169.254/latest/meta-data", 400),  # HTTP without TLS to another machine is none that is read.
        ("https://169.254.169.254/latest/meta-data", 403),
        ("file:///etc/passwd", 400),
        ("hf://other/math", 403),
        ("hf://org2/math", 403),
        ("s3://org/math", 403),
        ("ftp://org/math", 400),
        ("math.dq.gguf", 400),
        (f"{web.url}/deltas/math.dq.gguf\n200\n/etc/passwd", 400),
        (f"{web.url}/deltas/{'x' * 4096}", 400),
    ):
        message = error(server.post(LOAD, {"name": "sql", "uri": address}), status)
        assert "secret" not in message
        assert states(server) == {}, address
    assert web.requests == []


def test_what_the_source_does_not_give(server: Server, web: WebServer, narrow_deltas: list[Path]) -> None:
    def load(path: str, status: int) -> str:
        return error(server.post(LOAD, {"name": "sql", "uri": f"{web.url}/deltas/{path}?{SIGNATURE}"}), status)

    data = narrow_deltas[0].read_bytes()
    web.files["/deltas/wrong.dq.gguf"] = Served.of(data, headers={"x-amz-checksum-sha256": _sha256(b"other")})
    web.files["/deltas/broken.dq.gguf"] = Served.of(data[:5000])
    web.rules += [
        Rule("/deltas/away", redirect(f"{web.url}/other/math.dq.gguf?{SIGNATURE}")),
        Rule("/deltas/large", lambda h: h.plain(206, b"x", ETag='"1"', Content_Range=f"bytes 0-0/{5 << 30}")),
        Rule("/deltas/private", lambda h: h.plain(403, b"")),
    ]
    assert "404" in load("gone.dq.gguf", 404)
    assert "redirected" in load("away.dq.gguf", 403)
    assert "has 5.00 GiB, expected at most 1.00 GiB. --load-max-size" in load("large.dq.gguf", 413)
    assert "403" in load("private.dq.gguf", 502)
    assert "sha256" in load("wrong.dq.gguf", 502)
    assert states(server) == {}
    assert "cannot be served" in load("broken.dq.gguf", 500)
    assert states(server) == {"sql": "failed"}
    assert error(server.post(LOAD, {"name": "sql2", "uri": "hf://org/gone"}), 404)
    # The name is free for a file that can be had.
    server.ask(LOAD, name="sql", uri=f"{web.url}/deltas/math.dq.gguf")
    assert complete(server, "sql").status_code == 200


def test_a_prefix_that_is_none_stops_the_start(narrow_base: Path) -> None:
    command = [*LAUNCHER, "-m", narrow_base, "--load-from", "https://user:very-secret@host/"]
    need_program("llama-server")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "--load-from" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("value", ["", "7", "7:", "x:1", "7:0", "7:nan", "0:1", "99999:1", "1e1:5"])
def test_a_channel_that_is_none_stops_the_start(narrow_base: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DQRELO_RESOLVER", value)
    command = [need_program("llama-server"), "-m", narrow_base, "--port", "1", "-c", "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "DQRELO_RESOLVER" in done.stderr + done.stdout


# --- what takes long


def test_a_slow_source_is_given_up(narrow_base: Path, tmp_path: Path, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    with server_with(
        narrow_base, tmp_path, "--load-from", f"{web.url}/deltas/", "--delta-admin", "--load-timeout", "3"
    ) as server:
        uri = f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}"
        assert "within 3 s (--load-timeout)" in error(server.post(LOAD, {"name": "sql", "uri": uri}), 504)
        assert stalled.came.is_set()
        assert server.get("/health") == {"status": "ok"}
        stalled.may_go.set()
        wait_until(lambda: server.post(LOAD, {"name": "sql", "uri": uri}).status_code == 200)


def test_a_client_that_leaves_ends_its_download(server: Server, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    before = set(descendants(server.process.pid))
    uri = f"{web.url}/deltas/math.dq.gguf"
    body = json.dumps({"name": "sql", "uri": uri}).encode()
    head = f"POST {LOAD} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(head.encode() + body)
        assert stalled.came.wait(60)
        assert set(descendants(server.process.pid)) > before
        assert complete(server, "base").status_code == 200  # The main loop goes on meanwhile.
    wait_until(lambda: set(descendants(server.process.pid)) == before)
    stalled.may_go.set()
    assert server.ask(LOAD, name="sql", uri=uri)["state"] == "loaded"


def test_a_download_that_is_killed(server: Server, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    before = set(descendants(server.process.pid))
    uri = f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, LOAD, {"name": "sql", "uri": uri})
        assert stalled.came.wait(60)
        (worker,) = set(descendants(server.process.pid)) - before
        os.kill(worker, signal.SIGKILL)
        assert "signal 9" in error(answer.result(60), 502)
    stalled.may_go.set()
    assert server.ask(LOAD, name="sql", uri=uri)["state"] == "loaded"


def test_a_resolver_that_is_killed(server: Server, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    uri = f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}"
    (keeper,) = children(server.process.pid)
    (resolver,) = children(keeper)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, LOAD, {"name": "sql", "uri": uri})
        assert stalled.came.wait(60)
        os.kill(resolver, signal.SIGKILL)
        found = answer.result(60)
        assert "ended meanwhile" in error(found, 503)
        assert int(found.headers["Retry-After"]) > 0
    stalled.may_go.set()
    assert server.ask(LOAD, name="sql", uri=uri)["state"] == "loaded"  # Another one answers.
    for process in (keeper, *descendants(keeper)):
        os.kill(process, signal.SIGKILL)
    # Until the last thread of the killed processes has gone, a question still reaches their socket, and nobody answers it.
    wait_until(lambda: "Start dqrelo-server again" in error(server.post(LOAD, {"name": "sql2", "uri": uri}), 503))
    assert complete(server, "sql").status_code == 200


def test_two_loads_of_one_name_at_the_same_time(server: Server, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    before = set(descendants(server.process.pid))

    def load(name: str) -> requests.Response:
        return server.post(LOAD, {"name": "sql", "uri": f"{web.url}/deltas/{name}.dq.gguf"})

    with ThreadPoolExecutor(3) as pool:
        same = [pool.submit(load, "math") for _ in range(2)]
        wait_until(lambda: len(set(descendants(server.process.pid)) - before) == 2)
        assert stalled.came.wait(60)
        assert load("words").status_code == 200  # It is there first, so the others find another file under the name.
        stalled.may_go.set()
        assert ["another file" in error(answer.result(60), 400) for answer in same] == [True, True]
        server.ask("/deltas/unload", name="sql")
        answers = [answer.result(60) for answer in [pool.submit(load, "math") for _ in range(2)]]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert row(server, "sql")["generation"] == 2


def test_the_end_of_the_server_ends_downloads(narrow_base: Path, tmp_path: Path, web: WebServer) -> None:
    stalled = Stalled(web, "/deltas/math.dq.gguf")
    body: dict[str, Any] = {"name": "sql", "uri": f"{web.url}/deltas/math.dq.gguf?{SIGNATURE}"}
    with ThreadPoolExecutor(1) as pool:
        with server_with(narrow_base, tmp_path, "--load-from", f"{web.url}/deltas/", "--delta-admin") as server:
            answer = pool.submit(server.post, LOAD, body)
            assert stalled.came.wait(60)
            processes = descendants(server.process.pid)
            assert len(processes) == 3
        assert "shutting down" in error(answer.result(60), 503)
        wait_until(lambda: not any(map(is_alive, processes)))
    stalled.may_go.set()


def test_a_server_that_is_killed_leaves_no_process(narrow_base: Path, web: WebServer) -> None:
    command = [*LAUNCHER, "-m", narrow_base, "--port", "0", "--load-from", f"{web.url}/deltas/", *OPTIONS]
    need_program("llama-server")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(descendants(process.pid)) == 2)
        processes = descendants(process.pid)
        process.kill()
    wait_until(lambda: not any(map(is_alive, processes)))
