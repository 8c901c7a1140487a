"""Greedy generation as tokens, and a check of it that rounding cannot turn."""

from __future__ import annotations

import numpy as np

from dqrelo_gguf.native import core
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import Tokens

# Of the logits' standard deviation. Two runs of one model are up to 1e-2 apart, where the kernels or the batches differ.
MAX_TIE = 0.05


def generate_tokens(rt: Runtime, prompt: Tokens, row_deltas: list[Delta | None], max_tokens: int) -> list[Tokens]:
    """What each delta makes of one prompt, in one batch: int32 [n_generated]."""
    params = core.GenerateParams()
    params.max_tokens = max_tokens
    blends = [[] if delta is None else [(delta, 1.0)] for delta in row_deltas]
    return [tokens for _, tokens in rt._session.generate([prompt] * len(blends), blends, params)]


def assert_greedy(plain: Runtime, prompt: Tokens, generated: Tokens, row_delta: Delta | None = None) -> None:
    """Each token is the most probable one, but for near ties."""
    assert len(generated) > 0  # There are fewer than asked for where it came to an end token.
    rows = plain.logits(np.concatenate([prompt, generated]), row_delta)[len(prompt) - 1 : -1]
    missed = rows.max(axis=1) - rows[np.arange(len(generated)), generated]
    assert missed.max() <= MAX_TIE * rows.std()
