"""The text that models are compared on: windows of tokens, each with the tokens that count."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import read_bytes, read_conversations, rendered
from dqrelo_gguf.progress import Progress
from dqrelo_gguf.runtime.session import Runtime

Tokens = npt.NDArray[np.int32]

SELF = "self"
SELF_TOKENS = 8192  # of the text that the fine-tune writes, unless another number is asked for
N_TEXTS = 16  # that it writes at a time
MAX_EMPTY_DRAWS = 4


@dataclass(frozen=True)
class Window:
    """Tokens that are read together.

    Args:
        tokens: all of them.
        first: number of the token from which on each predicts one that counts.
    """

    tokens: Tokens
    first: int

    @property
    def n_scored(self) -> int:
        """Tokens that count."""
        return len(self.tokens) - 1 - self.first

    @property
    def targets(self) -> Tokens:
        """The tokens that count."""
        return self.tokens[self.first + 1 :]


@dataclass(frozen=True)
class Text:
    """What the models read.

    Args:
        name: of the file, or "self".
        sha256: of the file's bytes; of text that the fine-tune wrote, of its tokens (int32, little-endian).
        windows: at least one.
        n_cut: tokens that were left out, because a text was longer than a window or the last window was not full.
    """

    name: str
    sha256: str
    windows: list[Window]
    n_cut: int

    @property
    def n_scored(self) -> int:
        return sum(w.n_scored for w in self.windows)


def file_text(path: Path, rt: Runtime, n_ctx: int, n_tokens: int | None, end: int | None) -> Text:
    """A file's text as the fine-tune reads it: conversations (*.jsonl), or running text in full windows.

    Args:
        path: the file.
        rt: the fine-tune.
        n_ctx: tokens of a window.
        n_tokens: read at most about so many; None means all.
        end: its end token.

    Raises:
        InputError: it is no text, or too short.
    """
    raw = read_bytes(path)
    sha256 = hashlib.sha256(raw).hexdigest()
    if path.suffix == ".jsonl":
        texts = [rt.tokenize(text, add_special=False) for text in rendered(rt, read_conversations(path, raw), end)]
        windows, n_cut = separate_windows([with_start(rt, text) for text in texts], n_ctx, n_tokens)
        if not windows:
            raise InputError(f"{path}: its conversations have no tokens to compare on")
        return Text(path.name, sha256, windows, n_cut)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: is not UTF-8 at byte {e.start}, expected a text file") from e
    # Special tokens that are written in the text are text, as for llama-perplexity.
    tokens = with_start(rt, rt.tokenize(text, add_special=False, parse_special=False))
    if n_tokens is not None:
        tokens = tokens[: max(n_tokens, 2 * n_ctx)]
    if len(tokens) < 2 * n_ctx:
        raise InputError(
            f"{path}: has {len(tokens)} tokens, expected at least {2 * n_ctx}, two windows of {n_ctx}. "
            "Give more text, or a smaller --ctx"
        )
    windows = running_windows(tokens, n_ctx, start_of(rt))
    return Text(path.name, sha256, windows, len(tokens) - n_ctx * len(windows))


def self_text(rt: Runtime, n_ctx: int, n_tokens: int, *, seed: int, end: int | None, progress: Progress) -> Text:
    """Text that the fine-tune writes from the beginning, at temperature 1.

    Args:
        rt: the fine-tune.
        n_ctx: tokens of the longest text.
        n_tokens: as many texts as have that many tokens.
        seed: the same one gives the same text.
        end: its end token.
        progress: counts tokens.

    Raises:
        InputError: it has no token that begins a text, or writes nothing.
    """
    start = rt.start_token
    if start is None:
        raise InputError(f"{rt.path}: has no token that begins a text. Give one with --text FILE")
    texts, n_drawn, n_empty = list[Tokens](), 0, 0
    while n_drawn < n_tokens and n_empty < MAX_EMPTY_DRAWS:
        prompts = [np.array([start], np.int32)] * N_TEXTS
        drawn = rt.generate_tokens(prompts, max_tokens=n_ctx - 1, temperature=1.0, seed=seed)
        seed += N_TEXTS
        for tokens in drawn:
            is_whole = end is not None and len(tokens) < n_ctx - 1
            texts.append(np.concatenate([prompts[0], tokens, np.array([end] if is_whole else [], np.int32)]))
        n_new = sum(len(tokens) for tokens in drawn)
        progress.step(min(n_new, n_tokens - n_drawn), "by the fine-tune")
        n_drawn, n_empty = n_drawn + n_new, 0 if n_new else n_empty + 1
    if n_drawn == 0:
        raise InputError(f"{rt.path}: writes no text of its own. Give one with --text FILE")
    windows, n_cut = separate_windows(texts, n_ctx, n_tokens)
    digest = hashlib.sha256(b"".join(w.tokens.astype("<i4").tobytes() for w in windows)).hexdigest()
    return Text(SELF, digest, windows, n_cut)


def start_of(rt: Runtime) -> int | None:
    """The token that this model puts before a text; None where it puts none."""
    start = rt.start_token
    return start if start is not None and start in rt.tokenize("")[:1] else None


def with_start(rt: Runtime, tokens: Tokens) -> Tokens:
    """A text's tokens with the one that the model puts before them, if they do not begin with it."""
    start = start_of(rt)
    if start is None or (len(tokens) > 0 and tokens[0] == start):
        return tokens
    return np.concatenate([np.array([start], np.int32), tokens])


def running_windows(tokens: Tokens, n_ctx: int, start: int | None) -> list[Window]:
    """Full windows of a running text, as llama-perplexity cuts them: the first half of each is context, the rest counts.

    The first token of each gives way to `start`, the token that begins a text, if there is one.
    """
    windows = []
    for at in range(0, len(tokens) - n_ctx + 1, n_ctx):
        piece = tokens[at : at + n_ctx].copy()
        if start is not None:
            piece[0] = start
        windows.append(Window(piece, n_ctx // 2))
    return windows


def separate_windows(texts: list[Tokens], n_ctx: int, n_tokens: int | None) -> tuple[list[Window], int]:
    """A window for each text, in which all tokens but the first count; and how many tokens were cut off.

    Args:
        texts: what begins and ends by itself.
        n_ctx: longer ones are cut.
        n_tokens: no further texts once they have that many tokens; None takes all.
    """
    windows, n_cut, n_taken = list[Window](), 0, 0
    for tokens in texts:
        if n_tokens is not None and n_taken >= n_tokens:
            break
        if len(tokens) >= 2:
            windows.append(Window(tokens[:n_ctx], 0))
            n_cut += max(len(tokens) - n_ctx, 0)
            n_taken += len(tokens)
    return windows, n_cut
