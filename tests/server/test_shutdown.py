"""How a server ends, and what it does for clients that left: requests may finish, then they hear of it, and none holds the process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, complete, error
from tests.support.server_fixtures import Artefacts, Server, serve

END_SECONDS = 60
ENDLESS = {"model": "words", "prompt": PROMPT, "n_predict": -1, "ignore_eos": True, "stream": True}


@contextmanager
def serve_words(artefacts: Artefacts, folder: Path, *options: str) -> Iterator[Server]:
    with serve(artefacts.base, folder, "--delta", artefacts.words, "--context-shift", *CONTEXT, *options) as server:
        yield server


def read(server: Server, body: dict[str, Any], started: threading.Event, path: str = "/completion") -> list[Any]:
    """The events of a stream, until the server ends it."""
    found = []
    with requests.post(server.url + path, json=body, stream=True, timeout=END_SECONDS) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                found.append(json.loads(line.removeprefix(b"data: ")))
                started.set()
    return found


def end(server: Server) -> None:
    """Tells the server to end."""
    server.process.terminate()


def assert_ends(server: Server) -> None:
    assert server.process.wait(timeout=END_SECONDS) == 0, server.log.read_text()[-2000:]


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_an_endless_stream_ends_with_an_error(artefacts: Artefacts, tmp_path: Path, path: str) -> None:
    body = ENDLESS | {"messages": [{"role": "user", "content": "a"}]}
    with serve_words(artefacts, tmp_path, "--shutdown-timeout", "0.2") as server, ThreadPoolExecutor(2) as pool:
        started = threading.Event()
        stream = pool.submit(read, server, body, started, path)
        assert started.wait(END_SECONDS)
        end(server)
        events = stream.result(timeout=END_SECONDS)
        assert "shutting down" in events[-1]["error"]["message"]
        assert_ends(server)


def test_what_ends_in_time_is_whole(artefacts: Artefacts, tmp_path: Path) -> None:
    body = ENDLESS | {"n_predict": 400}
    with serve_words(artefacts, tmp_path, "--shutdown-timeout", "60") as server, ThreadPoolExecutor(2) as pool:
        started = threading.Event()
        stream = pool.submit(read, server, body, started)
        assert started.wait(END_SECONDS)
        end(server)
        events = stream.result(timeout=END_SECONDS)
        assert events[-1]["stop"]
        assert events[-1]["tokens_predicted"] == 400
        assert_ends(server)


def test_nothing_new_begins_while_it_ends(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve_words(artefacts, tmp_path, "--shutdown-timeout", "3") as server, ThreadPoolExecutor(2) as pool:
        started = threading.Event()
        stream = pool.submit(read, server, ENDLESS, started)
        assert started.wait(END_SECONDS)
        end(server)
        time.sleep(0.2)
        assert error(complete(server, "words"), 503)
        assert requests.get(server.url + "/health", timeout=60).status_code == 503
        stream.result(timeout=END_SECONDS)
        assert_ends(server)


def test_an_answer_in_one_piece_ends_with_a_503(artefacts: Artefacts, tmp_path: Path) -> None:
    body = ENDLESS | {"stream": False}
    with (
        serve_words(artefacts, tmp_path, "--shutdown-timeout", "0", "-np", "1") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        # One runs and the others wait for its slot.
        asked = [pool.submit(requests.post, server.url + "/completion", json=body, timeout=60) for _ in range(3)]
        deadline = time.monotonic() + END_SECONDS
        while not any(slot["is_processing"] for slot in server.get("/slots")):
            assert time.monotonic() < deadline
        time.sleep(0.3)
        end(server)
        for answer in asked:
            assert "shutting down" in error(answer.result(timeout=END_SECONDS), 503)
        assert_ends(server)


def test_an_idle_server_ends_at_once(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve_words(artefacts, tmp_path, "--shutdown-timeout", "3600") as server:
        requests.get(server.url + "/health", timeout=60)
        end(server)
        assert_ends(server)


def test_a_client_that_does_not_read_holds_nothing(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve_words(artefacts, tmp_path, "--shutdown-timeout", "0.2") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect((host, int(port)))
            body = json.dumps(ENDLESS)
            head = f"POST /completion HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert s.recv(10)
            time.sleep(2)  # After this time what the kernel buffers is full.
            end(server)
            assert_ends(server)


@pytest.mark.parametrize("value", ["", "x", "-1", "nan", "1e9"])
def test_a_bad_timeout_is_refused(artefacts: Artefacts, tmp_path: Path, value: str) -> None:
    server = serve_words(artefacts, tmp_path, "--shutdown-timeout", value)
    with pytest.raises(pytest.fail.Exception, match="--shutdown-timeout"), server:
        pass


# --- clients that left


def n_deferred(server: Server) -> float:
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    return float(next(line for line in lines if line.startswith("llamacpp:requests_deferred ")).split()[1])


def wait_for(server: Server, n: int) -> None:
    deadline = time.monotonic() + END_SECONDS
    while n_deferred(server) != n:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("is_stream", [False, True])
def test_who_leaves_while_he_waits_is_not_served(artefacts: Artefacts, tmp_path: Path, is_stream: bool) -> None:
    """Tokens of the stream that runs come all the time, and wake whoever waits."""
    options = ("-np", "1", "--metrics", "--shutdown-timeout", "0")
    with serve_words(artefacts, tmp_path, *options) as server, ThreadPoolExecutor(2) as pool:
        started = threading.Event()
        stream = pool.submit(read, server, ENDLESS, started)
        assert started.wait(END_SECONDS)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as s:
            body = json.dumps(ENDLESS | {"stream": is_stream})
            head = f"POST /completion HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_for(server, 1)
        wait_for(server, 0)
        assert not stream.done()
        end(server)
        stream.result(timeout=END_SECONDS)
        assert_ends(server)


# --- no tokens


@pytest.mark.parametrize("is_stream", [False, True])
def test_no_tokens_are_none(artefacts: Artefacts, tmp_path: Path, is_stream: bool) -> None:
    with serve_words(artefacts, tmp_path) as server:
        for model in ("words", "base.gguf"):
            body = {"model": model, "prompt": PROMPT, "max_tokens": 0, "stream": is_stream, "cache_prompt": True}
            chat = body | {"messages": [{"role": "user", "content": "a"}]}
            if is_stream:
                events = read(server, body, threading.Event())
                assert [event["content"] for event in events] == [""]
                found = events[-1]
                choices = [
                    c for e in read(server, chat, threading.Event(), "/v1/chat/completions") for c in e["choices"]
                ]
                assert choices[-1]["finish_reason"] == "length"
                assert not [c for c in choices if c["delta"].get("content")]
            else:
                found = server.ask("/completion", **body)
                assert found["content"] == ""
                answer = server.ask("/v1/chat/completions", **chat)
                assert answer["usage"]["completion_tokens"] == 0
                assert answer["choices"][0]["finish_reason"] == "length"
                many = server.ask("/v1/completions", **body, n=3)
                assert [choice["text"] for choice in many["choices"]] == ["", "", ""]
            assert (found["stop_type"], found["tokens_predicted"]) == ("limit", 0)
            # The prompt was computed all the same.
            assert server.ask("/completion", **body | {"stream": False, "max_tokens": 1})["timings"]["prompt_n"] <= 1
