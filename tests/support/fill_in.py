"""A model that knows the tokens for fill-in."""

from __future__ import annotations

from pathlib import Path

from dqrelo_gguf._pin import gguf
from tests.support.models import rewrite_gguf
from tests.upstream.hub import FILL_IN_TOKENS


def with_fill_in_tokens(source: Path, target: Path) -> Path:
    """The same model with its last tokens under the texts by which llama.cpp knows those for fill-in."""
    tokens = gguf.GGUFReader(source).fields["tokenizer.ggml.tokens"].contents()
    tokens[-len(FILL_IN_TOKENS) :] = FILL_IN_TOKENS
    return rewrite_gguf(source, target, fields={"tokenizer.ggml.tokens": tokens})
