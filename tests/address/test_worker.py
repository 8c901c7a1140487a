"""One address for a client of a server: the file, or a status and a line without credentials."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from dqrelo_gguf.address import settings, wire, worker
from dqrelo_gguf.address.reach import REACH, AllowList, prefix_of
from dqrelo_gguf.address.worker import answer_to
from tests.support.hub_server import TOKEN, HubServer
from tests.support.web_server import Rule, Served, WebServer, cut, redirect, status

SIGNATURE = "X-Signature=very-secret"
DATA = b"delta" * 500


@pytest.fixture(autouse=True)
def unconfined() -> None:
    REACH.confine(None)


def ask(text: str, *prefixes: str) -> tuple[int, list[str]]:
    """The answer's status, and its lines."""
    try:
        answer = answer_to(text, AllowList(tuple(map(prefix_of, prefixes))))
    finally:
        REACH.confine(None)
    assert answer.endswith(b"\n")
    assert b"secret" not in answer
    assert TOKEN.encode() not in answer
    number, *lines = answer.decode().removesuffix("\n").split("\n")
    assert len(lines) == (2 if number == "200" else 1)
    return int(number), lines


def test_a_file_of_a_web_server(web: WebServer) -> None:
    web.files["/a/math.dq.gguf"] = Served.of(DATA)
    number, (path, pinned) = ask(f"{web.url}/a/math.dq.gguf?{SIGNATURE}", f"{web.url}/a/")
    assert number == wire.OK
    assert Path(path).is_absolute()
    assert Path(path).read_bytes() == DATA
    assert pinned.startswith(f"{web.url}/a/math.dq.gguf (version")
    assert all(SIGNATURE in request.path for request in web.requests)


def test_a_file_of_the_hub_with_its_commit(hub: HubServer) -> None:
    commit = hub.put("org/math", {"math.dq.gguf": DATA, "README.md": b"card"})
    number, (path, pinned) = ask("hf://org/math", "hf://org/")
    assert number == wire.OK
    assert Path(path).read_bytes() == DATA
    assert pinned == f"hf://org/math/math.dq.gguf@{commit}"


@pytest.mark.parametrize(
    "case",
    [
        ("no address", wire.BAD_ADDRESS, "file://"),
        ("file:///etc/passwd", wire.BAD_ADDRESS, "file://"),
        ("ftp://host/x", wire.BAD_ADDRESS, "no scheme"),
        ("https://user:secret@host/x", wire.BAD_ADDRESS, "user or a password"),
        ("https://host/a/../x?secret", wire.BAD_ADDRESS, "expected https"),
        ("https://host/x?secret", wire.NOT_ALLOWED, "--load-from"),
        ("{web}/b/x", wire.NOT_ALLOWED, "--load-from"),
        ("{web}/a/..;/b?secret", wire.NOT_ALLOWED, "two ways"),
        ("{web}/a/gone", wire.NOT_THERE, "404"),
        ("{web}/a/private", wire.SOURCE_FAILED, "403"),
        ("{web}/a/elsewhere", wire.NOT_ALLOWED, "is redirected to http://localhost, to what is not below"),
        ("{web}/a/below", wire.NOT_ALLOWED, "is redirected"),
        ("{web}/a/large", wire.TOO_LARGE, "has 5.00 GiB, expected at most 1.00 GiB. --load-max-size"),
        ("{web}/a/wrong", wire.SOURCE_FAILED, "expected"),
        ("{web}/a/cut", wire.SOURCE_FAILED, "5 tries"),
        ("hf://org/gone", wire.NOT_THERE, "no such repository"),
        ("hf://org/math@gone", wire.NOT_THERE, "no such revision"),
        ("hf://org/math/gone", wire.NOT_THERE, "has no file"),
        ("hf://org/empty", wire.NOT_THERE, "has no delta"),
        ("hf://org/gated", wire.SOURCE_FAILED, "asked for"),
        ("hf://other/math", wire.NOT_ALLOWED, "--load-from"),
    ],
)
def test_what_cannot_be_had(
    web: WebServer, hub: HubServer, monkeypatch: pytest.MonkeyPatch, case: tuple[str, int, str]
) -> None:
    text, number, words = case
    monkeypatch.setenv(settings.MAX_DOWNLOAD, "1")
    hub.put("org/math", {"math.dq.gguf": DATA})
    hub.put("org/empty", {"README.md": b"card"})
    hub.put("org/gated", {"math.dq.gguf": DATA})
    hub.repositories["org/gated"].is_gated = True
    web.files["/a/wrong"] = Served.of(DATA, headers={"x-goog-hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="})
    web.files["/a/cut"] = Served.of(DATA)
    for path, action in (
        ("/a/private", status(403)),
        ("/a/elsewhere", redirect(f"{web.url.replace('127.0.0.1', 'localhost')}/a/x?{SIGNATURE}")),
        ("/a/below", redirect("../b/x")),
        ("/a/large", lambda h: h.plain(206, b"x", ETag='"1"', Content_Range=f"bytes 0-0/{5 << 30}")),
        ("/a/cut", cut(web.files["/a/cut"], 10)),
    ):
        web.rules.append(Rule(path, action))
    found = ask(text.replace("{web}", web.url), f"{web.url}/a/", "hf://org/")
    assert found[0] == number, found
    assert words in found[1][0]


def test_a_redirect_to_what_is_allowed_is_followed(web: WebServer) -> None:
    web.files["/c/x.dq.gguf"] = Served.of(DATA)
    web.rules.append(Rule("/a/", redirect("/c/x.dq.gguf")))
    number, (path, _) = ask(f"{web.url}/a/x.dq.gguf", f"{web.url}/a/", f"{web.url}/c/")
    assert number == wire.OK
    assert Path(path).read_bytes() == DATA


def test_what_nobody_foresaw_is_told_by_its_kind_alone(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"the URL has {SIGNATURE}")

    monkeypatch.setattr(worker, "fetched", fail)
    number, (why,) = ask(f"{web.url}/a/x", f"{web.url}/a/")
    assert number == wire.SOURCE_FAILED
    assert why == f"{web.url}/a/x: could not be fetched (RuntimeError)"


COMMAND = (sys.executable, "-P", "-m", "dqrelo_gguf.address.worker", "1")


def test_as_a_process(web: WebServer) -> None:
    web.files["/a/math.dq.gguf"] = Served.of(DATA)
    address = f"{web.url}/a/math.dq.gguf?{SIGNATURE}"
    with subprocess.Popen(
        [*COMMAND, f"{web.url}/"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(f"{address}\n".encode())
        process.stdin.flush()
        answer, said = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0
    assert answer.startswith(b"200\n/")
    assert f"{web.url}/a/math.dq.gguf".encode() in said
    assert b"secret" not in said


def test_a_process_ends_when_nobody_waits(web: WebServer) -> None:
    web.rules.append(Rule("/a/", lambda handler: handler.rfile.read()))  # It says nothing until the client has gone.
    process = subprocess.Popen([*COMMAND, f"{web.url}/"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{web.url}/a/x\n".encode())
    process.stdin.flush()
    while web.count("/a/x") == 0:
        assert process.poll() is None
    process.stdin.close()
    assert process.wait(30) == 1
    assert requests.get(f"{web.url}/c", timeout=30).status_code == 404
