"""The tokens that stand around a prompt are the delta's, at every endpoint that makes tokens of text, as in Python's Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf import Runtime
from dqrelo_gguf.convert.job import Job, convert
from tests.support.delta_server import PROMPT
from tests.support.fill_in import with_fill_in_tokens
from tests.support.models import rewrite_gguf
from tests.support.server_fixtures import Artefacts, Server, serve
from tests.upstream.hub import FILL_IN_TOKENS

BOS = 300  # The delta `other-bos` has it; the base's is 1.
FIELDS: dict[str, dict[str, Any]] = {
    "same": {},
    "no-bos": {"tokenizer.ggml.add_bos_token": False},
    "other-bos": {"tokenizer.ggml.bos_token_id": BOS},
    "eos": {"tokenizer.ggml.add_eos_token": True},
}
MODELS = ("base", *FIELDS)
# What stands before and behind the words; the base's end token is 2.
AROUND: dict[str, tuple[list[int], list[int]]] = {
    "base": ([1], []),
    "same": ([1], []),
    "no-bos": ([], []),
    "other-bos": ([BOS], []),
    "eos": ([1], [2]),
}
CONTEXT = ("-c", "1024", "-np", "1", "--alias", "base")


@dataclass(frozen=True)
class Stage:
    server: Server
    base: Path
    deltas: dict[str, Path]


def make_deltas(artefacts: Artefacts, folder: Path) -> dict[str, Path]:
    """One fine-tune under different special tokens, without a chat template of its own."""
    found = {}
    for name, fields in FIELDS.items():
        no_template = {"tokenizer.chat_template": None}
        tuned = rewrite_gguf(artefacts.merged, folder / f"{name}.gguf", fields=fields | no_template)
        found[name] = folder / f"{name}.dq.gguf"
        convert(Job(artefacts.base, tuned, found[name]))
    return found


def options(deltas: dict[str, Path]) -> tuple[str, ...]:
    return ("--delta", ",".join(f"{name}={path}" for name, path in deltas.items()), *CONTEXT)


@pytest.fixture(scope="module")
def stage(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("vocab")
    deltas = make_deltas(artefacts, folder)
    with serve(artefacts.base, folder, *options(deltas)) as server:
        yield Stage(server, artefacts.base, deltas)


def tokens(stage: Stage, model: str, text: str, **more: Any) -> list[int]:
    found: list[int] = stage.server.ask("/tokenize", model=model, content=text, **more)["tokens"]
    return found


def around(stage: Stage, model: str, text: str = PROMPT) -> list[int]:
    before, behind = AROUND[model]
    return [*before, *tokens(stage, "base", text, add_special=False), *behind]


def assert_prompt(server: Server, path: str, body: dict[str, Any], expected: list[int]) -> None:
    """The request's prompt is those tokens: all but the last are found in the cache of the same given as tokens."""
    erase = {"model": body["model"], "prompt": [9, 9], "n_predict": 1}
    server.ask("/completion", **erase)
    server.ask(path, **body)
    again = {"model": body["model"], "prompt": expected, "n_predict": 1, "temperature": 0}
    timings = server.ask("/completion", **again)["timings"]
    assert (timings["cache_n"], timings["prompt_n"]) == (len(expected) - 1, 1)


@pytest.mark.parametrize("model", MODELS)
def test_tokenize(stage: Stage, model: str) -> None:
    assert tokens(stage, model, PROMPT, add_special=True) == around(stage, model)
    assert tokens(stage, model, PROMPT) == tokens(stage, "base", PROMPT)
    mixed = stage.server.ask("/tokenize", model=model, content=[7, "a"], add_special=True)["tokens"]
    assert mixed[0] == 7
    pieces = stage.server.ask("/tokenize", model=model, content="a", add_special=True, with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == around(stage, model, "a")


def test_it_is_what_the_runtime_does(stage: Stage) -> None:
    with Runtime(stage.base, n_ctx=256) as rt:
        for name, path in stage.deltas.items():
            delta = rt.load_delta(path)
            for add_special in (True, False):
                expected = rt.tokenize(PROMPT, add_special=add_special, delta=delta).tolist()
                assert tokens(stage, name, PROMPT, add_special=add_special) == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_completion(stage: Stage, model: str, path: str) -> None:
    assert_prompt(stage.server, path, {"model": model, "prompt": PROMPT, "max_tokens": 1}, around(stage, model))


@pytest.mark.parametrize("model", MODELS)
def test_tokens_stay_as_they_are(stage: Stage, model: str) -> None:
    prompt = [1, 5, 6, 7, 2]
    assert_prompt(stage.server, "/completion", {"model": model, "prompt": prompt, "n_predict": 1}, prompt)


# --- chats


CHAT = [{"role": "user", "content": "a b c"}]


@pytest.mark.parametrize("model", [model for model in MODELS if model != "eos"])
def test_chat(artefacts: Artefacts, tmp_path: Path, model: str) -> None:
    """A template that begins with the beginning token: it is there once, the delta's, also where the tokenizer adds none."""
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    deltas = make_deltas(artefacts, tmp_path)
    with serve(artefacts.base, tmp_path, *options(deltas), "--chat-template", template) as server:
        stage = Stage(server, artefacts.base, deltas)
        before = AROUND[model][0] or [1]  # It is the template's, where the tokenizer has none.
        expected = [*before, *around(stage, "no-bos", "a b c")]
        body = {"model": model, "messages": CHAT}
        assert_prompt(server, "/v1/chat/completions", body | {"max_tokens": 1}, expected)
        for path in ("/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"):
            assert server.ask(path, **body)["input_tokens"] == len(expected)
        prompt = server.ask("/apply-template", **body)["prompt"]
        assert tokens(stage, model, prompt, add_special=True) == expected


# --- other endpoints


@pytest.mark.parametrize("model", MODELS)
def test_infill(artefacts: Artefacts, stage: Stage, tmp_path: Path, model: str) -> None:
    base = with_fill_in_tokens(artefacts.base, tmp_path / "fim.gguf")
    with serve(base, tmp_path, *options(stage.deltas)) as server:
        prefix, suffix = (tokens(stage, "base", text) for text in ("a b c", "e f g"))
        pre, suf, mid = (server.ask("/tokenize", content=text)["tokens"] for text in FILL_IN_TOKENS)
        expected = [*AROUND[model][0], *pre, *prefix, *suf, *suffix, *mid]
        body = {"model": model, "input_prefix": "a b c", "input_suffix": "e f g", "n_predict": 1}
        assert_prompt(server, "/infill", body, expected)


@pytest.mark.parametrize("model", MODELS)
def test_embeddings(artefacts: Artefacts, stage: Stage, tmp_path: Path, model: str) -> None:
    with serve(artefacts.base, tmp_path, *options(stage.deltas), "--embeddings", "--pooling", "mean") as server:

        def vector(given: object) -> list[float]:
            found: list[float] = server.ask("/v1/embeddings", model=model, input=given)["data"][0]["embedding"]
            return found

        expected = vector(around(stage, model))
        assert vector(PROMPT) == pytest.approx(expected, abs=1e-5)
        assert vector({"content": [{"type": "text", "text": PROMPT}]}) == pytest.approx(expected, abs=1e-5)
        assert vector([77, *around(stage, model)]) != pytest.approx(expected, abs=1e-4)
