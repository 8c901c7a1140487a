"""The front of a fleet, with replicas that say what the test wants: no cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dqrelo_gguf.integrations.fleet.arguments import Arguments
from dqrelo_gguf.integrations.fleet.messages import Accepted, Call, Head, ServerGoneError, ServerSlowError
from tests.support.coroutines import FOREVER, run_apart

pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install 'dqrelo-gguf[serve]'")
starlette = pytest.importorskip("starlette.requests", reason="ray[serve] is not installed")

JSON_HEAD = Head(200, (("Content-Type", "application/json"),), b"{}")
STREAM_HEAD = Head(200, (("Content-Type", "text/event-stream"),), b"data: 1\n\n")


@dataclass
class Messages:
    """The answer of a replica: messages, errors that are raised, and seconds that pass."""

    script: list[Any]
    is_cancelled: bool = False

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        if not self.script:
            raise StopAsyncIteration
        step = self.script.pop(0)
        if isinstance(step, float):
            await asyncio.sleep(step)
            return await self.__anext__()
        if isinstance(step, Exception):
            raise step
        return step

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Replicas:
    """A handle whose calls get one script after the other."""

    scripts: list[Sequence[Any]]
    calls: list[Call] = field(default_factory=list)
    answers: list[Messages] = field(default_factory=list)

    def options(self, **_options: Any) -> Replicas:
        return self

    def remote(self, call: Call) -> Messages:
        self.calls.append(call)
        self.answers.append(Messages(list(self.scripts.pop(0))))
        return self.answers[-1]


@dataclass
class Answer:
    """What a client got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def ask(
    replicas: Replicas,
    path: str = "/v1/completions",
    method: str = "POST",
    *,
    chunks: Sequence[bytes] = (b'{"model": "math"}',),
    headers: Sequence[tuple[str, str]] = (),
    chunk_seconds: float = 0.0,
    leaves_after: int | None = None,
    **arguments: Any,
) -> Answer:
    """One HTTP request; with `leaves_after`, the client goes after so many chunks of the answer."""
    from dqrelo_gguf.integrations.fleet.front import Front

    found, sent, left = Answer(), [*chunks], asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.sleep(chunk_seconds)
            return {"type": "http.request", "body": sent.pop(0), "more_body": bool(sent)}
        await left.wait()
        return {"type": "http.disconnect"}

    n_chunks = 0

    async def send(message: dict[str, Any]) -> None:
        nonlocal n_chunks
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            found.body += message.get("body", b"")
            n_chunks += 1
            if n_chunks == leaves_after:
                left.set()

    async def serve() -> None:
        front = Front(replicas, Arguments.read({"base": "b", "deltas": "d"} | arguments))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": raw, "query_string": b""}
        response = await front(starlette.Request(scope, receive))
        await response(scope, receive, send)

    run_apart(asyncio.wait_for(serve(), FOREVER))
    return found


def test_an_answer_passes_with_its_status() -> None:
    replicas = Replicas([[Accepted("a"), Head(404, (("Content-Type", "application/json"),), b'{"error": 1}')]])
    answer = ask(replicas, headers=[("Authorization", "Bearer k"), ("Cookie", "c")])
    assert (answer.status, answer.body) == (404, b'{"error": 1}')
    (call,) = replicas.calls
    assert call == Call("POST", "/v1/completions", (("authorization", "Bearer k"),), b'{"model": "math"}', ("math",))


def test_a_stream_passes() -> None:
    replicas = Replicas([[Accepted("a"), STREAM_HEAD, b"data: 2\n\n", b"data: [DONE]\n\n"]])
    answer = ask(replicas)
    assert answer.body == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert answer.headers["content-type"] == "text/event-stream"
    assert not replicas.answers[0].is_cancelled


def test_what_was_not_answered_goes_to_another_replica() -> None:
    from ray.exceptions import ActorDiedError

    replicas = Replicas(
        [
            [Accepted("a"), ServerGoneError("gone")],
            [Accepted("b"), ActorDiedError()],
            [Accepted("c"), JSON_HEAD],
        ]
    )
    assert ask(replicas).status == 200
    assert [call.failed for call in replicas.calls] == [frozenset(), frozenset("a"), frozenset("ab")]


def test_three_failures_are_the_end() -> None:
    replicas = Replicas([[Accepted("a"), ServerGoneError("gone")]] * 4)
    answer = ask(replicas)
    assert (answer.status, answer.error["type"]) == (503, "unavailable_error")
    assert "3 replicas ended before they answered" in answer.error["message"]
    assert answer.headers["retry-after"]
    assert len(replicas.calls) == 3


@pytest.mark.parametrize(
    ("path", "last", "begin"),
    [
        ("/v1/completions", b"data: 2\n\n", b"data: "),
        ("/v1/completions", b"data: {", b"\n\ndata: "),
        ("/v1/messages", b"data: 2\n\n", b"event: error\ndata: "),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error(path: str, last: bytes, begin: bytes) -> None:
    replicas = Replicas([[Accepted("a"), STREAM_HEAD, last, ServerGoneError("gone")]])
    answer = ask(replicas, path)
    assert answer.body.startswith(STREAM_HEAD.body + last + begin)
    error = json.loads(answer.body.removeprefix(STREAM_HEAD.body + last + begin))["error"]
    assert (error["code"], error["type"]) == (503, "unavailable_error")
    assert len(replicas.calls) == 1


def test_a_slow_answer_is_an_error_and_not_tried_again() -> None:
    replicas = Replicas([[Accepted("a"), ServerSlowError("slow")]])
    answer = ask(replicas)
    assert (answer.status, answer.error["message"]) == (504, "the answer took longer than it may")


def test_a_request_does_not_wait_for_a_replica_for_ever() -> None:
    replicas = Replicas([[FOREVER, Accepted("a"), JSON_HEAD]])
    answer = ask(replicas, wait_seconds=0.1)
    assert (answer.status, answer.error["message"]) == (503, "no replica was free for 0.1 s. Try again later")
    assert replicas.answers[0].is_cancelled


def test_too_many_waiting_requests_are_refused() -> None:
    from ray.serve.exceptions import BackPressureError

    answer = ask(Replicas([[BackPressureError(num_queued_requests=7, max_queued_requests=7)]]), max_waiting=7)
    assert (answer.status, answer.error["message"]) == (503, "7 requests wait for a replica. Try again later")


def test_a_client_that_leaves_ends_its_request() -> None:
    replicas = Replicas([[Accepted("a"), STREAM_HEAD, b"data: 2\n\n", FOREVER]])
    ask(replicas, leaves_after=2)
    assert replicas.answers[0].is_cancelled


@pytest.mark.parametrize("headers", [[], [("Content-Length", "9999999")], [("Content-Length", "9" * 5000)]])
def test_a_long_body_is_refused_with_or_without_its_length(headers: list[tuple[str, str]]) -> None:
    replicas = Replicas([])
    answer = ask(replicas, chunks=[b"x" * (1 << 19)] * 3, headers=headers, max_body=1)
    assert (answer.status, answer.error["message"]) == (413, "the body has more than 1 MiB")


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from dqrelo_gguf.integrations.fleet import bodies

    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    assert ask(Replicas([]), chunks=[b"{", b"}"], chunk_seconds=0.08).status == 408


def test_what_does_not_pass_reaches_no_replica() -> None:
    for method, path in (("GET", "/metrics"), ("POST", "/deltas/load"), ("GET", "/v1/completions"), ("PUT", "/health")):
        answer = ask(Replicas([]), path, method)
        assert (answer.status, answer.error["type"]) == (404, "not_found_error")


def test_health_is_that_of_some_replica() -> None:
    well = Replicas([[Accepted("a"), Head(200, (), b'{"status":"ok"}')]])
    assert ask(well, "/health", "GET", chunks=()).body == b'{"status":"ok"}'
    ill = Replicas([[Accepted("a"), ServerGoneError("gone")]])
    assert ask(ill, "/health", "GET", chunks=()).status == 503
    assert ill.answers[0].is_cancelled


def test_a_fleet_that_answers_is_well_although_all_of_it_is_busy() -> None:
    from dqrelo_gguf.integrations.fleet.front import Front

    async def serve() -> list[int]:
        front = Front(Replicas([[Accepted("a"), JSON_HEAD]]), Arguments.read({"base": "b", "deltas": "d"}))

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        found = []
        for method, path in (("POST", "/v1/completions"), ("GET", "/health")):
            scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
            found.append((await front(starlette.Request(scope, receive))).status_code)
        return found

    assert run_apart(serve()) == [200, 200]  # There is no second script, so the second call asked nobody.
