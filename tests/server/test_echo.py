"""Log probabilities of prompts, as OpenAI's and vLLM's clients ask for them.

The reference is independent of the server: `Runtime`'s logits of the same tokens, and those of the merged model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests

from dqrelo_gguf.runtime.session import Delta, Runtime
from tests.support.delta_server import PROMPT, error, stream
from tests.support.server_fixtures import Artefacts, Server, serve

# The reference computes in float64 what the server rounds to float32.
ALONE = 1e-5
# In another batch shape sums have another order: that makes 0.07 on the long prompt below, with and without deltas alike.
SHAPE = 0.15
# The merged model is another computation: its weights are rounded, the delta's products are not.
SAME_AS_MERGED = 0.3
MODELS = ("base", "words", "json", "loud")
N_CTX = 512  # of a slot
CONTEXT = ("-np", "4", "-c", "2048", "--alias", "base")
LONG = PROMPT * 12  # several ubatches, and more tokens than a batch has rows of logits

Floats = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: Floats = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


@dataclass
class Reference:
    """What each model says of the token after each token, computed in the shape of a server's batches."""

    runtime: Runtime
    deltas: dict[str, Delta | None]
    known: dict[tuple[str, tuple[int, ...]], Floats] = field(default_factory=dict)

    def logprobs(self, model: str, tokens: list[int]) -> Floats:
        """[n_tokens, n_vocab]"""
        key = (model, tuple(tokens))
        if key not in self.known:
            self.known[key] = log_softmax(self.runtime.logits(tokens, delta=self.deltas[model]))
        return self.known[key]


@contextmanager
def open_reference(artefacts: Artefacts, n_batch: int, n_ubatch: int) -> Iterator[Reference]:
    with Runtime(artefacts.base, n_threads=1, n_batch=n_batch, n_ubatch=n_ubatch) as runtime:
        files = {"words": artefacts.words, "json": artefacts.json, "loud": artefacts.loud}
        yield Reference(runtime, {"base": None} | {name: runtime.load_delta(path) for name, path in files.items()})


@pytest.fixture(scope="module")
def reference(artefacts: Artefacts) -> Iterator[Reference]:
    """In the shape of `server`: its batches have as many tokens of such prompts as they have rows for logits."""
    with open_reference(artefacts, 128, 128) as found:
        yield found


@pytest.fixture(scope="module")
def narrow_reference(artefacts: Artefacts) -> Iterator[Reference]:
    with open_reference(artefacts, 48, 16) as found:
        yield found


def run_server(artefacts: Artefacts, folder: Path, *options: str | Path) -> Any:
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    caches = ("--cache-reuse", "4", "--cache-ram", "64", "--slot-save-path", folder)
    return serve(artefacts.base, folder, *deltas, *CONTEXT, *caches, *options)


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


def tokens_of(server: Server, text: str, model: str = "base", special: bool = True) -> list[int]:
    found: list[int] = server.ask("/tokenize", model=model, content=text, add_special=special)["tokens"]
    return found


def echo(server: Server, model: str, prompt: Any, **more: Any) -> list[dict[str, Any]]:
    """The choices of what lm_eval asks."""
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "return_token_ids": True}
    found: list[dict[str, Any]] = server.ask("/v1/completions", model=model, prompt=prompt, **body | more)["choices"]
    return found


def check(choice: dict[str, Any], reference: Reference, model: str, k: int = 1, within: float = ALONE) -> None:
    """A choice with echo and `logprobs: k` against the reference, token by token; generated ones come in batches of one."""
    logprobs = choice["logprobs"]
    tokens = choice["prompt_token_ids"] + choice["token_ids"]
    expected = reference.logprobs(model, tokens)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(logprobs[name]) == len(tokens), name
    for i in range(1, len(tokens)):
        row, own, top = expected[i - 1], logprobs["token_logprobs"][i], logprobs["top_logprobs"][i]
        bound = within if i < len(choice["prompt_token_ids"]) else SHAPE
        assert own == pytest.approx(row[tokens[i]], abs=bound), i
        assert top[logprobs["tokens"][i]] >= own  # Two tokens may have one name; the better one counts.
        best = np.sort(row)[::-1][:k]
        found = sorted(top.values(), reverse=True)
        assert k <= len(found) <= k + 1 or len(set(top)) < k, (i, top)
        assert np.abs(np.array(found[:k]) - best).max(initial=0) < bound, i


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
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(own, abs=ALONE)
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


def test_a_client_that_leaves_is_forgotten(server: Server) -> None:
    tokens = tokens_of(server, LONG)
    body = {"model": "words", "prompt": [tokens] * 400, "echo": True, "logprobs": 1, "max_tokens": 1}
    with pytest.raises(requests.ReadTimeout):
        requests.post(server.url + "/v1/completions", json=body, timeout=0.5)
    assert len(echo(server, "json", PROMPT)) == 1
    while any(slot["is_processing"] for slot in server.get("/slots")):
        pass


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


# --- the tokenizer


def test_tokens_as_vllm_asks_for_them(server: Server) -> None:
    for text in (PROMPT, "", "Grüße 🙂 <s>"):
        tokens = tokens_of(server, text, special=False)
        answer = server.ask("/tokenize", prompt=text, add_special_tokens=False)
        assert answer == {"count": len(tokens), "max_model_len": N_CTX, "tokens": tokens, "token_strs": None}
        assert server.ask("/tokenize", prompt=text)["tokens"] == tokens_of(server, text)
        assert server.ask("/detokenize", tokens=tokens)["prompt"] == server.ask("/detokenize", tokens=tokens)["content"]
        assert len(server.ask("/tokenize", prompt=text, return_token_strs=True)["token_strs"]) == len(tokens) + 1
    assert server.ask("/tokenize", content="a", add_special=False) == {"tokens": tokens_of(server, "a", special=False)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/tokenize", {"prompt": prompt}) for prompt in (1, None, ["a"], {})),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "model": 7}),
        *(("/detokenize", {"tokens": tokens}) for tokens in ([10**6], [-1], ["a"], "a", {})),
    ],
    ids=str,
)
def test_a_tokenizer_refuses_what_makes_no_sense(server: Server, path: str, body: dict[str, Any]) -> None:
    assert "\n" not in error(server.post(path, body), 400)


def test_the_tokenizers_own_tokens_are_the_deltas(server: Server) -> None:
    base, loud = server.get("/tokenizer_info"), server.get("/tokenizer_info?model=loud")
    assert base == server.get("/tokenizer_info?model=base")
    assert (base["bos_token"], base["eos_token"], base["model_max_length"]) == ("<s>", "</s>", N_CTX)
    assert loud["eos_token"] == " c"  # noqa: S105 - a word of the vocabulary
    assert loud["chat_template"] != base["chat_template"]
    assert loud["chat_template"] == server.get("/props?model=loud")["chat_template"]
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert "nobody" in error(server.post(path, body | {"model": "nobody"}), 404)
    assert requests.get(server.url + "/tokenizer_info?model=nobody", timeout=60).status_code == 404


def test_token_texts_of_a_prompt_join_to_its_text(server: Server) -> None:
    answer = server.ask("/tokenize", prompt=LONG, return_token_strs=True)
    assert "".join(answer["token_strs"][1:]).lstrip(" ") == LONG
    assert all(a <= b for a, b in pairwise(echo(server, "base", LONG)[0]["logprobs"]["text_offset"]))
