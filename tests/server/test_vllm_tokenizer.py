"""The tokenizer over HTTP as vLLM's clients ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import requests

from tests.support.delta_server import PROMPT, error
from tests.support.logprobs import LONG, N_CTX, echo, run_server, tokens_of
from tests.support.server_fixtures import Artefacts, Server


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(artefacts, tmp_path_factory.mktemp("tokenizer")) as running:
        yield running


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
