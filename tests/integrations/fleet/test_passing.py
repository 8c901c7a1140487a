"""What passes through the front of a fleet."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from dqrelo_gguf.integrations.fleet.passing import answer_headers, asked_names, is_name, request_headers, server_path


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/tokenize", "/tokenize"),
        ("GET", "/v1/models", "/v1/models"),
        ("GET", "/v1/models/math", "/v1/models/math"),
        ("GET", "/v1/models/ä b?c#d", "/v1/models/%C3%A4%20b%3Fc%23d"),
        ("GET", "/v1/models/a..b", "/v1/models/a..b"),
    ],
)
def test_calls_that_pass(method: str, path: str, expected: str) -> None:
    assert server_path(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/../../metrics"),
        ("GET", "/v1/models/.."),
        ("GET", "/v1/models/.hidden"),
        ("GET", "/v1/models/a\r\nHost: b"),
        ("GET", "/v1/models/" + "x" * 201),
        ("GET", "/v1/modelsmath"),
        ("GET", "/metrics"),
        ("GET", "/slots"),
        ("GET", "/props"),
        ("GET", "/deltas"),
        ("POST", "/deltas/load"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/lora-adapters"),
        ("POST", "//v1/completions"),
        ("POST", "/v1/completions/"),
        ("OPTIONS", "/v1/completions"),
        ("DELETE", "/v1/models/math"),
        ("GET", ""),
    ],
)
def test_calls_that_do_not_pass(method: str, path: str) -> None:
    assert server_path(method, path) is None


def test_headers_pass_by_name_and_as_often_as_they_came() -> None:
    sent = [
        ("Authorization", "Bearer a"),
        ("authorization", "Bearer b"),
        ("X-Api-Key", "c"),
        ("content-type", "application/json"),
        ("Accept", "*/*"),
        ("Cookie", "d"),
        ("X-Conversation-Id", "e"),
        ("Host", "f"),
        ("Transfer-Encoding", "chunked"),
        ("serve_multiplexed_model_id", "g"),
        ("X-Forwarded-For", "h"),
    ]
    assert request_headers(sent) == tuple(sent[:5])


def test_headers_of_answers() -> None:
    got = [
        ("Content-Type", "text/event-stream"),
        ("Server", "llama.cpp"),
        ("Retry-After", "1"),
        ("Content-Length", "9"),
    ]
    assert answer_headers(got) == (got[0], got[2])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"model": "math"}, ("math",)),
        ({"model": "c++"}, ("c++",)),
        ({"model": "math*0.6+words*0.4"}, ("math", "words")),
        ({"model": "math*0.6+words"}, ("math", "words")),
        ({"model": "a*b*2"}, ("a*b",)),
        ({"model": "math*1+math*2"}, ("math",)),
        ({"model": "math", "deltas": [{"name": "a+b", "scale": 1}, {"name": "c"}]}, ("a+b", "c")),
        ({"model": "math", "deltas": []}, ()),
        ({"deltas": [{"name": 1}, "x", None, {"scale": 2}, {"name": "c"}]}, ("c",)),
        ({"model": "+".join(f"d{i}*1" for i in range(9))}, ()),
        ({"deltas": [{"name": f"d{i}"} for i in range(10**5)]}, ()),
        ({"model": "x" * 201}, ()),
        ({"model": "ä" * 101}, ()),
        ({"model": "a/b"}, ()),
        ({"model": ""}, ()),
        ({"model": None}, ()),
        ({"model": 7}, ()),
        ({"model": ["math"]}, ()),
        ({"model": "\ud800"}, ()),
        ({}, ()),
        ([], ()),
        ("math", ()),
    ],
)
def test_deltas_that_a_request_asks_for(request_: Any, expected: tuple[str, ...]) -> None:
    assert asked_names(json.dumps(request_).encode()) == expected


def test_what_else_is_in_a_body_becomes_no_objects() -> None:
    """A front has one thread for all clients, so a long body must not take long: five million lists would take seconds and a gigabyte."""
    body = b'{"x": [' + b"[]," * 5_000_000 + b'[]], "model": "math"}'
    tracemalloc.start()
    try:
        assert asked_names(body) == ("math",)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        for name in ("model", "deltas"):
            assert asked_names(body.replace(b'"x"', f'"{name}"'.encode()).replace(b'"model": "math"', b'"y": 1')) == ()
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)  # Its copies above.
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "math", "x": ' + b"[" * 100_000,
        b'{"x": ' + b"9" * 10_000 + b"}",
        b'{"model": "math"} x',
    ],
)
def test_bodies_that_cannot_be_read_ask_for_nothing(body: bytes) -> None:
    assert asked_names(body) == ()


@pytest.mark.parametrize("name", ["math", "a b", "ä" * 100, "x" * 200, "a.b", "c++", "a*b", "`"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".a", "a/b", "a\\b", 'a"b', "a'b", "a\nb", "a\x7f", "x" * 201, "ä" * 101, "\udcff"]
)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
