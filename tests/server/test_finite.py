"""Numbers of a request or a file that poison answers: refused, or their own request fails and nobody else's answer changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.delta_server import PROMPT, error, stream, whole_answer
from tests.support.logprobs import assert_same_answer
from tests.support.server_fixtures import Artefacts, Server, serve

CONTEXT = ("-np", "4", "-c", "2048", "--alias", "base")
OVERFLOW = 1e4
MODELS = ("base", "words", "json")


def ask(server: Server, model: str, **more: Any) -> requests.Response:
    body = {"model": model, "prompt": PROMPT, "n_predict": 8, "temperature": 0, "n_probs": 2} | more
    return server.post("/completion", body)


def answers(server: Server) -> list[Any]:
    """What every model says, with its log-probabilities: equal ones mean equal bits."""
    found = []
    for model in MODELS:
        answer = ask(server, model, cache_prompt=False)
        assert answer.status_code == 200, answer.text
        found.append((answer.json()["content"], answer.json()["completion_probabilities"]))
    return found


def deltas(artefacts: Artefacts) -> tuple[str | Path, ...]:
    return ("--delta", f"words={artefacts.words},json={artefacts.json}", *CONTEXT)


# --- bounds


@pytest.fixture(scope="module")
def bounded(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(artefacts.base, tmp_path_factory.mktemp("bounded"), *deltas(artefacts)) as running:
        yield running


@pytest.mark.parametrize(
    "text",
    [
        "4.001",
        "-5",
        "1000",
        "1e39",
        "1e308",
        "1e400",
        "-1e400",
        "1" + "0" * 400,
        "NaN",
        "Infinity",
        '"1"',
        '"nan"',
        "true",
        "[1]",
        "{}",
    ],
)
def test_a_scale_that_is_no_small_number_is_refused(bounded: Server, text: str) -> None:
    body = json.dumps({"model": "words", "prompt": PROMPT, "n_predict": 2})
    raw = body.removesuffix("}") + f', "delta_scale": {text}}}'
    answer = requests.post(bounded.url + "/completion", data=raw, timeout=60)
    assert answer.status_code == 400, answer.text


def test_the_refusal_names_the_bound(bounded: Server) -> None:
    message = error(ask(bounded, "words", delta_scale=4.5), 400)
    assert message == '"delta_scale" must be a number from -4 to 4 (--delta-max-scale), got 4.5'
    assert len(error(ask(bounded, "words", delta_scale="x" * 100_000), 400)) < 200


@pytest.mark.parametrize("scale", [4, -4, 0, 1e-30, None])
def test_a_scale_up_to_the_bound_is_served(bounded: Server, scale: float | None) -> None:
    assert ask(bounded, "words", delta_scale=scale).status_code == 200


# --- overflow


@pytest.fixture(scope="module", params=["off", "on"])
def flash_attn(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def fresh(artefacts: Artefacts, flash_attn: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with serve(artefacts.base, tmp_path_factory.mktemp("fresh"), *deltas(artefacts), "-fa", flash_attn) as running:
        return answers(running)


@pytest.fixture
def unbounded(artefacts: Artefacts, flash_attn: str, tmp_path: Path) -> Iterator[Server]:
    args = (*deltas(artefacts), "-fa", flash_attn, "--delta-max-scale", "1e38")
    with serve(artefacts.base, tmp_path, *args) as running:
        yield running


def test_an_overflow_fails_its_request_and_no_later_one(unbounded: Server, fresh: list[Any]) -> None:
    for scale in (OVERFLOW, -OVERFLOW, 1e20):
        message = error(ask(unbounded, "words", delta_scale=scale), 500)
        assert message.startswith("delta 'words': the answer is not a number")
    assert answers(unbounded) == fresh


def test_a_large_scale_that_does_not_overflow_everything_harms_no_later_request(
    unbounded: Server, fresh: list[Any]
) -> None:
    for exponent in range(1, 38):
        assert ask(unbounded, "words", delta_scale=10.0**exponent).status_code in (200, 500)
    assert answers(unbounded) == fresh


def test_streams_beside_an_overflow_are_untouched(unbounded: Server) -> None:
    alone = {model: whole_answer(unbounded, model, 48) for model in MODELS}
    with ThreadPoolExecutor(len(MODELS)) as pool:
        events = {model: threading.Event() for model in MODELS}
        running = {model: pool.submit(stream, unbounded, model, 48, events[model]) for model in MODELS}
        for event in events.values():
            assert event.wait(60)
        statuses = [ask(unbounded, "words", delta_scale=OVERFLOW, cache_prompt=False).status_code for _ in range(4)]
        assert statuses == [500] * 4
        for model, future in running.items():
            assert_same_answer(future.result(), alone[model], n_least=20)


def test_several_answers_of_one_request_fail_together(unbounded: Server, fresh: list[Any]) -> None:
    error(ask(unbounded, "words", delta_scale=OVERFLOW, n_cmpl=3), 500)
    assert answers(unbounded) == fresh
    assert all(slot["is_processing"] is False for slot in requests.get(unbounded.url + "/slots", timeout=60).json())


def test_a_stream_ends_with_the_error(unbounded: Server) -> None:
    body = {"model": "words", "prompt": PROMPT, "stream": True, "delta_scale": OVERFLOW}
    answer = unbounded.post("/completion", body)
    assert "not a number" in answer.text
    assert "[DONE]" not in answer.text


def test_a_chat_with_an_overflow_fails_clearly(unbounded: Server) -> None:
    body = {"model": "words", "messages": [{"role": "user", "content": "d b a"}], "delta_scale": OVERFLOW}
    assert "not a number" in error(unbounded.post("/v1/chat/completions", body), 500)


def test_embeddings_with_an_overflow_fail_clearly(artefacts: Artefacts, tmp_path: Path) -> None:
    args = (*deltas(artefacts), "--embeddings", "--pooling", "mean", "--delta-max-scale", "1e38")
    with serve(artefacts.base, tmp_path, *args) as running:
        before = running.ask("/v1/embeddings", model="words", input="d b a")["data"]
        body = {"model": "words", "input": "d b a", "delta_scale": OVERFLOW}
        assert "not a number" in error(running.post("/v1/embeddings", body), 500)
        assert running.ask("/v1/embeddings", model="words", input="d b a")["data"] == before
