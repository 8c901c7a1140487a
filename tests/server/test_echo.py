"""Log probabilities of prompts, as OpenAI's and vLLM's clients ask for them.

The reference is independent of the server: `Runtime`'s logits of the same tokens, and those of the merged model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_server import PROMPT, error, stream
from tests.support.logprobs import (
    ALONE,
    LONG,
    MODELS,
    SAME_AS_MERGED,
    SHAPE,
    Floats,
    Reference,
    check,
    echo,
    log_softmax,
    open_reference,
    run_server,
    tokens_of,
)
from tests.support.models import convert_hf
from tests.support.server_fixtures import Artefacts, Server, serve
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_tokenizers import known_to_the_conversion


@pytest.fixture(scope="module")
def reference(artefacts: Artefacts) -> Iterator[Reference]:
    """In the shape of `server`: its batches have as many tokens of such prompts as they have rows for logits."""
    with open_reference(artefacts, 128, 128) as found:
        yield found


@pytest.fixture(scope="module")
def narrow_reference(artefacts: Artefacts) -> Iterator[Reference]:
    with open_reference(artefacts, 48, 16) as found:
        yield found


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(artefacts, tmp_path_factory.mktemp("echo")) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Small batches in smaller ubatches, one cache for all sequences, and a draft model."""
    options = ("-b", "48", "-ub", "16", "--kv-unified", "-md", artefacts.base)
    with run_server(artefacts, tmp_path_factory.mktemp("narrow"), *options) as running:
        yield running


@dataclass(frozen=True)
class Pair:
    server: Server
    reference: Reference


@pytest.fixture(params=["wide", "narrow"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """A server, and the reference in the shape of its batches."""
    names = ("server", "reference") if request.param == "wide" else ("narrow", "narrow_reference")
    return Pair(*(request.getfixturevalue(name) for name in names))


# --- echo


@pytest.mark.parametrize("model", MODELS)
def test_an_echoed_prompt_has_the_models_log_probabilities(pair: Pair, model: str) -> None:
    for prompt in (PROMPT, LONG):
        tokens = tokens_of(pair.server, prompt, model)
        (choice,) = echo(pair.server, model, tokens)
        assert choice["prompt_token_ids"] == tokens
        assert len(choice["token_ids"]) == 1
        check(choice, pair.reference, model)
    assert len(tokens) > 2 * 128


def test_models_differ_in_what_they_say(server: Server) -> None:
    """Else the comparisons with the reference would not tell a delta from another."""
    said = [echo(server, model, tokens_of(server, PROMPT))[0]["logprobs"]["token_logprobs"][1:] for model in MODELS]
    for i, one in enumerate(said):
        for other in said[i + 1 : 3]:  # loud has words' weights
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 20 * SHAPE


def test_a_delta_says_what_its_merged_model_says(server: Server, artefacts: Artefacts) -> None:
    tokens = tokens_of(server, LONG)
    (choice,) = echo(server, "words", tokens, max_tokens=0)
    with Runtime(artefacts.merged, n_threads=1) as merged:
        expected = log_softmax(merged.logits(tokens))
    found = choice["logprobs"]["token_logprobs"][1:]
    own = [expected[i, token] for i, token in enumerate(tokens[1:])]
    assert np.abs(np.array(found) - own).max() < SAME_AS_MERGED


@pytest.mark.parametrize("k", [0, 1, 2, 5, 20])
def test_the_best_tokens_and_the_tokens_own(server: Server, reference: Reference, k: int) -> None:
    (choice,) = echo(server, "json", PROMPT, logprobs=k)
    check(choice, reference, "json", k)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_generated_tokens_follow_the_prompts(pair: Pair, n: int) -> None:
    (choice,) = echo(pair.server, "words", PROMPT, max_tokens=n, ignore_eos=True)
    assert len(choice["token_ids"]) == n
    check(choice, pair.reference, "words")
    assert choice["text"].startswith(PROMPT)
    assert (len(choice["text"]) > len(PROMPT)) == (n > 0)
    assert choice["finish_reason"] == "length"


def test_an_end_token_is_one_of_the_generated(server: Server, reference: Reference) -> None:
    """lm_eval takes the last token for the generated one, whatever it is."""
    (choice,) = echo(server, "words", PROMPT, max_tokens=40)
    assert choice["finish_reason"] == "stop"
    check(choice, reference, "words")


def test_a_text_may_be_echoed_without_log_probabilities(server: Server) -> None:
    for n in (0, 2):
        (choice,) = echo(server, "words", PROMPT, logprobs=None, max_tokens=n, return_token_ids=False)
        assert choice["text"].startswith(PROMPT)
        assert choice["logprobs"] is None
        assert "token_ids" not in choice
        assert "prompt_logprobs" not in choice


def test_without_echo_only_generated_tokens_have_log_probabilities(pair: Pair) -> None:
    (choice,) = echo(pair.server, "json", PROMPT, echo=False, max_tokens=3, logprobs=2, ignore_eos=True)
    tokens = choice["prompt_token_ids"] + choice["token_ids"]
    expected = pair.reference.logprobs("json", tokens)[-4:-1]
    own = [row[token] for row, token in zip(expected, choice["token_ids"], strict=True)]
    # The server computed these tokens one at a time, the reference all at once.
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(own, abs=SHAPE)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["content"]) == 3  # llama.cpp's own form stays


# --- texts and tokens


@pytest.mark.parametrize("text", [PROMPT, "a", " a", "", "Grüße, 你好 🙂", "a\n\n b\t"])
def test_offsets_are_characters_of_the_text(server: Server, text: str) -> None:
    (choice,) = echo(server, "base", text, max_tokens=3, logprobs=0, ignore_eos=True)
    assert choice["text"].startswith(text)
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"][0] == 0
    n_prompt = len(choice["prompt_token_ids"])
    assert logprobs["text_offset"][n_prompt:][0] == len(text)
    ends = [*logprobs["text_offset"][1:], len(choice["text"])]
    for name, start, end in zip(logprobs["tokens"], logprobs["text_offset"], ends, strict=True):
        # A beginning token and a blank before the text are not of it.
        assert start <= end
        assert name.startswith("bytes:") or name.endswith(choice["text"][start:end])


def test_pieces_of_characters_are_named_by_their_bytes(server: Server) -> None:
    (choice,) = echo(server, "base", "🙂", max_tokens=0)
    pieces = [name for name in choice["logprobs"]["tokens"] if name.startswith("bytes:")]
    assert "".join(piece.removeprefix("bytes:") for piece in pieces) == "\\xf0\\x9f\\x99\\x82"
    (choice,) = echo(server, "base", "🙂", max_tokens=0, return_tokens_as_token_ids=True)
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["prompt_token_ids"]]
    for name, top in zip(choice["logprobs"]["tokens"][1:], choice["logprobs"]["top_logprobs"][1:], strict=True):
        assert name in top
        assert len(top) in (1, 2)


def test_text_and_tokens_are_the_same_prompt(server: Server) -> None:
    tokens = tokens_of(server, PROMPT)
    (by_text,), (by_tokens,) = echo(server, "words", PROMPT), echo(server, "words", tokens)
    assert by_text["prompt_token_ids"] == tokens
    assert by_text["logprobs"]["token_logprobs"] == by_tokens["logprobs"]["token_logprobs"]
    assert by_text["text"].startswith(PROMPT)
    assert by_tokens["text"].startswith("<s> " + PROMPT)
    (plain,) = echo(server, "words", PROMPT, add_special_tokens=False)
    assert plain["prompt_token_ids"] == tokens[1:]


@pytest.mark.parametrize("model", ["base", "json"])
def test_prompts_of_one_request_are_answered_in_their_order(pair: Pair, model: str) -> None:
    texts = [PROMPT, "a", LONG, "the dog", PROMPT + "a", LONG[5:], "a b c"]
    lists = [tokens_of(pair.server, text) for text in texts]
    for prompts in (texts, lists):
        choices = echo(pair.server, model, prompts)
        assert [choice["index"] for choice in choices] == list(range(len(texts)))
        assert [choice["prompt_token_ids"] for choice in choices] == lists
        for choice in choices:
            check(choice, pair.reference, model, within=SHAPE)
    assert [choice["prompt_token_ids"] for choice in echo(pair.server, model, [lists[1]])] == [lists[1]]


def test_answers_of_one_prompt_share_its_log_probabilities(server: Server, reference: Reference) -> None:
    choices = echo(server, "words", PROMPT, n=3, temperature=1.5, max_tokens=4, ignore_eos=True)
    assert len(choices) == 3
    assert len({tuple(choice["token_ids"]) for choice in choices}) > 1
    n_prompt = len(choices[0]["prompt_token_ids"])
    for choice in choices:
        check(choice, reference, "words")
        assert choice["logprobs"]["token_logprobs"][:n_prompt] == choices[0]["logprobs"]["token_logprobs"][:n_prompt]


# --- caches


def fresh(server: Server, model: str) -> list[float | None]:
    found: list[float | None] = echo(server, model, LONG, id_slot=1)[0]["logprobs"]["token_logprobs"]
    return found


@pytest.mark.parametrize("model", ["base", "words"])
def test_no_cache_changes_an_echo(pair: Pair, model: str) -> None:
    def warm(**more: Any) -> Any:
        return pair.server.ask(
            "/v1/completions", model=model, prompt=LONG, max_tokens=2, temperature=0, id_slot=1, **more
        )

    cold = fresh(pair.server, model)
    assert fresh(pair.server, model) == cold  # after itself
    warm()
    again = warm()
    assert again["timings"]["cache_n"] > 100  # the cache is there
    assert fresh(pair.server, model) == cold
    pair.server.ask("/slots/1?action=save", filename="echo.slot")
    pair.server.ask("/v1/completions", model=model, prompt="something else", max_tokens=1, id_slot=1)
    pair.server.ask("/slots/1?action=restore", filename="echo.slot", model=model)
    assert fresh(pair.server, model) == cold
    (choice,) = echo(pair.server, model, LONG[40:], id_slot=1)  # what --cache-reuse would shift
    assert echo(pair.server, model, LONG[40:], id_slot=1)[0]["logprobs"] == choice["logprobs"]


def test_an_echo_leaves_a_cache_for_others(server: Server) -> None:
    echo(server, "json", LONG, id_slot=2)
    body = {"model": "json", "prompt": LONG, "max_tokens": 1, "id_slot": 2}
    assert server.ask("/v1/completions", **body)["timings"]["cache_n"] > 100
    # A text alone is echoed from the cache.
    assert server.ask("/v1/completions", **body, echo=True)["timings"]["cache_n"] > 100
    assert server.ask("/v1/completions", **body, echo=True, logprobs=0)["timings"]["cache_n"] == 0


# --- beside others


def test_echoes_beside_other_requests(pair: Pair) -> None:
    """Prompts of all models in one batch, beside generation of others."""
    started = [threading.Event() for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        streams = [
            pool.submit(stream, pair.server, model, 200, event)
            for model, event in zip(("json", "base"), started, strict=True)
        ]
        for event in started:
            assert event.wait(60)
        echoes = {model: [pool.submit(echo, pair.server, model, [LONG, PROMPT])] for model in MODELS}
        for model, futures in echoes.items():
            for future in futures:
                for choice in future.result():
                    check(choice, pair.reference, model, within=SHAPE)
        assert all(found.result() for found in streams)


@pytest.mark.parametrize("asked", [{"echo": True, "logprobs": 1}, {"cache_prompt": False}], ids=["echo", "plain"])
def test_a_client_that_leaves_is_forgotten(artefacts: Artefacts, tmp_path: Path, asked: dict[str, Any]) -> None:
    """Its prompts are answered one after the other, each within the second in which a silent server looks after its clients."""
    with run_server(artefacts, tmp_path, "--metrics") as running:
        tokens, n = tokens_of(running, LONG), 400
        body = {"model": "words", "prompt": [tokens] * n, "max_tokens": 1, **asked}
        with pytest.raises(requests.ReadTimeout):
            requests.post(running.url + "/v1/completions", json=body, timeout=0.5)
        assert len(echo(running, "json", PROMPT)) == 1
        while any(slot["is_processing"] for slot in running.get("/slots")):
            pass
        found = re.search(
            r"^llamacpp:prompt_tokens_total (\d+)",
            requests.get(running.url + "/metrics", timeout=60).text,
            re.MULTILINE,
        )
        assert found is not None
        assert int(found[1]) < n * len(tokens) / 2


def test_numbers_that_overflow_fail_their_request_alone(
    artefacts: Artefacts, tmp_path: Path, reference: Reference
) -> None:
    with run_server(artefacts, tmp_path, "--delta-max-scale", "100000") as running:
        tokens = tokens_of(running, PROMPT)
        body = {"model": "words", "prompt": tokens, "echo": True, "logprobs": 1, "max_tokens": 1, "delta_scale": 1e4}
        for _ in range(2):
            assert "NaN or infinity" in error(running.post("/v1/completions", body), 500)
            for model in ("words", "base"):
                check(echo(running, model, tokens)[0], reference, model)


# --- prompt_logprobs


def check_prompt_logprobs(found: list[dict[str, Any] | None], tokens: list[int], expected: Floats, k: int) -> None:
    assert len(found) == len(tokens)
    assert found[0] is None
    for i in range(1, len(tokens)):
        row, entries = expected[i - 1], found[i]
        assert entries is not None
        assert k <= len(entries) <= k + 1
        own = entries[str(tokens[i])]
        above, near = row > row[tokens[i]] + ALONE, np.abs(row - row[tokens[i]]) <= ALONE
        assert above.sum() < own["rank"] <= above.sum() + near.sum()
        assert set(own) == {"logprob", "rank", "decoded_token"}
        for token, entry in entries.items():
            assert entry["logprob"] == pytest.approx(row[int(token)], abs=ALONE)
        assert {entry["rank"] for entry in entries.values()} >= set(range(1, k + 1))


@pytest.mark.parametrize("k", [0, 1, 5])
def test_prompt_logprobs_of_a_completion(pair: Pair, k: int) -> None:
    (choice,) = echo(pair.server, "words", LONG, echo=False, logprobs=None, prompt_logprobs=k)
    tokens = choice["prompt_token_ids"]
    check_prompt_logprobs(choice["prompt_logprobs"], tokens, pair.reference.logprobs("words", tokens), k)
    assert not choice["text"].startswith("###")
    assert choice["logprobs"] is None
    (both,) = echo(pair.server, "words", LONG, prompt_logprobs=k, logprobs=2)
    check(both, pair.reference, "words", 2)
    assert [set(row) for row in both["prompt_logprobs"][1:]] == [set(row) for row in choice["prompt_logprobs"][1:]]


@pytest.mark.parametrize("model", ["base", "loud"])
def test_prompt_logprobs_of_a_chat(server: Server, reference: Reference, model: str) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 2, "prompt_logprobs": 2, "return_token_ids": True}
    answer = server.ask("/v1/chat/completions", **body)
    prompt = server.ask("/apply-template", model=model, messages=messages)["prompt"]
    assert answer["prompt_token_ids"] == tokens_of(server, prompt, model)
    assert len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"]
    expected = reference.logprobs(model, answer["prompt_token_ids"])
    check_prompt_logprobs(answer["prompt_logprobs"], answer["prompt_token_ids"], expected, 2)


# --- what is refused

NUMBERS = (-1, 21, 10**9, -(10**30), 10**30, 1.5, "a", "1", True, [1], {})
FLAGS = ("yes", 1, 0, [True], {})
BAD = [
    *({field: value} for field in ("logprobs", "prompt_logprobs") for value in NUMBERS),
    *(
        {field: value}
        for field in ("echo", "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens")
        for value in FLAGS
    ),
    {"stream": True, "echo": True},
    {"stream": True, "prompt_logprobs": 0},
    {"stream": True, "return_token_ids": True},
    {"echo": True, "logprobs": 1, "prompt": [10**6]},
    {"echo": True, "logprobs": 1, "prompt": [-1]},
    {"echo": True, "logprobs": 1, "prompt": [[5, 6], [10**6]]},
    {"echo": True, "logprobs": 1, "prompt": []},
    {"echo": True, "logprobs": 1, "prompt": {}},
    {"echo": True, "logprobs": 1, "prompt": PROMPT * 40},
    {"echo": True, "logprobs": 20, "prompt": [[5] * 500] * 100},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: str(fields)[:60])
def test_what_makes_no_sense_is_a_400(server: Server, fields: dict[str, Any]) -> None:
    answer = server.post("/v1/completions", {"model": "words", "prompt": "a", "max_tokens": 1} | fields)
    assert "\n" not in error(answer, 400)


@pytest.mark.parametrize("field", ["prompt_logprobs", "return_token_ids"])
def test_a_chat_refuses_the_same(server: Server, field: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for value in ("a", 10**9, -1):
        assert field in error(server.post("/v1/chat/completions", body | {field: value}), 400)


def test_null_is_the_same_as_nothing(server: Server) -> None:
    nothing = dict.fromkeys(
        ("echo", "logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens")
    )
    (choice,) = server.ask("/v1/completions", prompt="a", max_tokens=1, **nothing)["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None


def test_a_stream_has_log_probabilities_of_its_own(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 2, "logprobs": 1, "stream": True, "ignore_eos": True}
    with requests.post(server.url + "/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        assert '"top_logprobs"' in answer.text


# --- other models


def make_model(name: str, folder: Path) -> Path:
    with known_to_the_conversion():
        return convert_hf(write_base(ARCHITECTURES[name], folder / name), folder / f"{name}.gguf", "ALL_F32")


@pytest.mark.parametrize(("name", "within"), [("gemma3", SHAPE), ("lfm2", SHAPE), ("mamba", ALONE)])
def test_models_that_forget_are_computed_anew(tmp_path: Path, name: str, within: float) -> None:
    """Sliding windows and recurrent states come back from checkpoints, but not for an echo."""
    path = make_model(name, tmp_path)
    tokens = np.random.default_rng(0).integers(3, 200, size=230).tolist()
    with serve(path, tmp_path, "-np", "2", "-c", "1024") as running:
        (cold,) = echo(running, "", tokens)
        for prompt in (tokens, [*tokens, 5]):
            running.ask("/v1/completions", prompt=prompt, max_tokens=1, temperature=0)
        (warm,) = echo(running, "", tokens)
    assert warm == cold
    with Runtime(path, n_threads=1, n_batch=128, n_ubatch=128) as runtime:
        check(cold, Reference(runtime, {"": None}), "", within=within)


def test_a_model_of_embeddings_refuses(tmp_path: Path) -> None:
    path = make_model("bert", tmp_path)
    with serve(path, tmp_path, "--embeddings", "--pooling", "mean") as running:
        body = {"prompt": [5, 6], "echo": True, "logprobs": 1, "max_tokens": 1}
        assert "does not support logits" in error(running.post("/v1/completions", body), 400)
