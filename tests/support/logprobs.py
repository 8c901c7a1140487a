"""Log probabilities of prompts: what a server answers, and what the runtime's logits say of the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf.runtime.session import Delta, Runtime
from tests.support.delta_server import PROMPT
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


def run_server(artefacts: Artefacts, folder: Path, *options: str | Path) -> Any:
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    caches = ("--cache-reuse", "4", "--cache-ram", "64", "--slot-save-path", folder)
    return serve(artefacts.base, folder, *deltas, *CONTEXT, *caches, *options)


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


def assert_same_answer(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], n_least: int, within: float = SHAPE
) -> None:
    """The same tokens with the same log probabilities, until two tokens are as probable: at least n_least of them.

    Args:
        found: `completion_probabilities` of an answer.
        expected: those of the same one, made in batches of another shape, or by other code.
        n_least: tokens.
        within: how far a log probability may be from the expected one.
    """
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours["id"] != theirs["id"]:
            known = {top["id"]: top["logprob"] for top in theirs["top_logprobs"]}
            assert i >= n_least, f"token {i} is another one"
            assert theirs["logprob"] - known.get(ours["id"], -np.inf) < within, f"token {i}"
            return
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=within), f"token {i}"
