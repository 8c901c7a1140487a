"""Greedy answers computed alone, and the comparison with them that a near tie cannot turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.support.server_fixtures import Server

N_PREDICT = 24
N_PROBS = 5
# By how much the difference of two likely tokens depends on the batch's shape. For the soak's prompts and deltas, merged into plain GGUFs and
# run by stock llama.cpp with 1, 2, 8, 24 and all tokens a graph, it is up to 0.0154 (AVX-512, F16), and 0.0159 with the deltas themselves.
NOISE = 1.6e-2


class Verdict(Enum):
    """How an answer compares with the one computed alone."""

    RIGHT = "right"
    NEAR_TIE = "near tie"
    WRONG = "wrong"


@dataclass(frozen=True)
class Expected:
    """A greedy answer computed alone.

    Args:
        tokens: the ids.
        below_best: for each of them, how far the next ones are below the best, as log-probabilities by id.
    """

    tokens: tuple[int, ...]
    below_best: tuple[dict[int, float], ...]

    def judge(self, tokens: Sequence[int], *, is_whole: bool = True) -> Verdict:
        """Compares an answer, or the beginning of one.

        From a near tie on the two texts go their own ways, so nothing after it is compared.
        """
        for i, token in enumerate(tokens):
            if i == len(self.tokens):
                return Verdict.WRONG
            if token != self.tokens[i]:
                return Verdict.NEAR_TIE if self.below_best[i].get(token, 1.0) <= NOISE else Verdict.WRONG
        return Verdict.WRONG if is_whole and len(tokens) < len(self.tokens) else Verdict.RIGHT


def request_body(model: str, prompt: str) -> dict[str, Any]:
    """What every request of a soak asks for."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "n_predict": N_PREDICT, "temperature": 0}
    return body | {"return_tokens": True}


def answer_alone(server: Server, model: str, prompt: str) -> Expected:
    """Asks a server that does nothing else and caches nothing."""
    answer = server.ask("/completion", **request_body(model, prompt), n_probs=N_PROBS, cache_prompt=False)
    assert answer["timings"]["cache_n"] == 0
    below_best = []
    for token in answer["completion_probabilities"]:
        likely = token["top_logprobs"]
        below_best.append({other["id"]: likely[0]["logprob"] - other["logprob"] for other in likely})
    return Expected(tuple(answer["tokens"]), tuple(below_best))
