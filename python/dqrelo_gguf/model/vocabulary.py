"""Vocabularies of base and fine-tune: rows of padding make room for added tokens, and changed tokens are found.

llama.cpp's conversion gives every row of the embedding a token; rows that no tokenizer fills become tokens of the type
UNUSED. A model with such rows can take a fine-tune's added tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import BaseMismatchError, printable
from dqrelo_gguf.file.container import GGUFValue
from dqrelo_gguf.file.format import MODEL_TOKENS
from dqrelo_gguf.file.metadata import Token
from dqrelo_gguf.model.base import EndTokens, GgufModel, Model

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
# Weights with a row (or, a bias, an element) for each token.
BY_TOKEN = (EMBEDDING, OUTPUT, "output.bias")
_TYPES = "tokenizer.ggml.token_type"
_UNUSED = int(gguf.TokenType.UNUSED)
_NORMAL = int(gguf.TokenType.NORMAL)


def changed_tokens(base: Model, tuned: Model) -> list[Token]:
    """The tokens with another text or type than in the base; none where one of them has no vocabulary."""
    ours, theirs = _tokens(base), _tokens(tuned)
    # Where one has more, the rest is padding (fit_vocabulary).
    pairs = enumerate(zip(ours, theirs, strict=False))
    return [Token(i, *b) for i, (a, b) in pairs if a != b and b[1] != _UNUSED]


def token_problem(base: Model, tuned: Model) -> str | None:
    """Why the same token is not the same text for both, or None where it is.

    Padding may differ in number, and what a fine-tune made of special tokens of its base is its own matter.
    """
    ours, theirs = _tokens(base), _tokens(tuned)
    n_ours, n_theirs = (_n_used(m, len(tokens)) for m, tokens in ((base, ours), (tuned, theirs)))
    if n_ours > len(theirs) or n_theirs > len(ours):
        return f"{n_theirs} tokens in use, expected {n_ours}"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a[1] == _NORMAL and b[0] != a[0]:
            return f"token {i} is '{printable(b[0])}', expected '{printable(a[0])}'"
    return None


def fit_vocabulary(base: GgufModel, tuned: Model) -> Model:
    """The fine-tune with as many rows as its base, where those that differ are padding.

    Raises:
        BaseMismatchError: a token would be left without a row.
    """
    if tuned.architecture != base.architecture or not all(EMBEDDING in m.shapes for m in (base, tuned)):
        return tuned
    if not all(len(m.shapes[EMBEDDING]) == 2 for m in (base, tuned)):
        return tuned  # The comparison of shapes will name it.
    n_base, n_tuned = base.shapes[EMBEDDING][1], tuned.shapes[EMBEDDING][1]
    if n_base == n_tuned:
        return tuned
    n_used_base, n_used_tuned = _n_used(base, n_base), _n_used(tuned, n_tuned)
    if n_used_tuned > n_base:
        raise BaseMismatchError(
            f"{tuned.label}: vocabulary has {n_tuned} entries, {n_used_tuned} of them in use, base {base.label} has "
            f"{n_base}. A delta cannot add rows: resize the base's embeddings to {n_tuned} (resize_token_embeddings), "
            "convert it again and use it as the base"
        )
    if n_used_base > n_tuned:
        raise BaseMismatchError(
            f"{tuned.label}: vocabulary has {n_tuned} entries, base {base.label} has {n_base}, {n_used_base} of them in "
            f"use. A delta cannot remove tokens: resize the fine-tune's embeddings to {n_base}"
        )
    return _Resized(base, tuned, n_tuned)


def _tokens(model: Model) -> list[tuple[str, int]]:
    """Text and type of every token."""
    texts, types = model.field(MODEL_TOKENS), model.field(_TYPES)
    if texts is None:
        return []
    kinds = [_NORMAL] * len(texts.value) if types is None else [int(t) for t in types.value]
    return list(zip(map(_text, texts.value), kinds, strict=True))


def _text(token: str | bytes) -> str:
    """The conversion gives some tokens as bytes."""
    return token.decode("utf-8", "replace") if isinstance(token, bytes | bytearray) else token


def _n_used(model: Model, n_rows: int) -> int:
    """Rows up to the last one whose token is no padding; all of them where there is no list of tokens."""
    tokens = _tokens(model)
    if len(tokens) != n_rows:
        return n_rows
    return max((i + 1 for i, (_, kind) in enumerate(tokens) if kind != _UNUSED), default=0)


class _Resized:
    """A fine-tune whose weights by token have as many rows as the base's.

    Rows that it lacks are the base's, so that their delta is zero; rows too many are cut.
    """

    def __init__(self, base: GgufModel, tuned: Model, n_tuned: int) -> None:
        self.label, self.architecture = tuned.label, tuned.architecture
        self._base, self._tuned = base, tuned
        self._n_tuned, self._n_base = n_tuned, base.shapes[EMBEDDING][1]

    @property
    def name(self) -> str:
        return self._tuned.name

    @property
    def notes(self) -> list[str]:
        return self._tuned.notes

    @property
    def end_tokens(self) -> EndTokens | None:
        return self._tuned.end_tokens

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            name: (*ne[:-1], self._n_base) if self._is_by_token(name, ne) else ne
            for name, ne in self._tuned.shapes.items()
        }

    def field(self, key: str) -> GGUFValue | None:
        return self._tuned.field(key)

    def field_names(self) -> list[str]:
        return self._tuned.field_names()

    def load(self, name: str, blocks: Blocks) -> npt.NDArray[np.float32]:
        values = self._tuned.load(name, blocks)
        if not self._is_by_token(name, self._tuned.shapes[name]):
            return values
        if self._n_tuned >= self._n_base:
            return np.ascontiguousarray(values[: self._n_base])
        # A base that ties its output to its embedding has no rows of its own for it.
        source = name if name in self._base.shapes else EMBEDDING
        return np.concatenate([values, self._base.load(source, blocks)[self._n_tuned :]])

    def _is_by_token(self, name: str, ne: tuple[int, ...]) -> bool:
        return name in BY_TOKEN and ne[-1] == self._n_tuned
