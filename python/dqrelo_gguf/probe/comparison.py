"""The inputs of weights in the fine-tune and in a model of it that is compressed so far: what the two are together, over a text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.moments import Text, in_parts
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.probe.tuned_model import open_watched
from dqrelo_gguf.runtime.calls import ResumePoints
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]

# Tokens of the text at most.
MAX_TOKENS = 16384
# Tokens whose rows are held at once; a text more at most.
PART_TOKENS = 4096
# What draws a weight to the fine-tune's own, against the mean of the diagonal of x'^T x': a shift is smooth, so that less does than for codes.
SHIFT_DAMPING = 0.05


@dataclass(frozen=True)
class Part:
    """Some of the texts, and where each of the two models goes on with them."""

    texts: list[Text]
    tuned: ResumePoints = field(default_factory=ResumePoints)
    compressed: ResumePoints = field(default_factory=ResumePoints)


def held_bytes(texts: Sequence[Text], n_in: int) -> int:
    """What a comparison holds at most, in bytes, where the longest rows have n_in numbers."""
    n_tokens = min(sum(len(text.tokens) for text in texts), MAX_TOKENS)
    points = 2 * 2 * 4 * n_in * n_tokens  # of each model, what a product reads and the residual beside it
    rows = 3 * 4 * n_in * min(n_tokens, PART_TOKENS)
    return points + rows + 2 * 8 * n_in**2


class Comparison:
    """The fine-tune and a model of it that is compressed so far, which read the same text, a step further each time. A context manager.

    Args:
        texts: what is read, up to MAX_TOKENS tokens spread over all of it.
        tuned: the plain GGUF of the fine-tune. The compressed model begins as the same.
        blocks: the threads to work with.

    Attributes:
        compressed: the compressed model, whose weights are set between the steps.
    """

    def __init__(self, texts: Sequence[Text], tuned: Path, blocks: Blocks) -> None:
        some = _first(texts, MAX_TOKENS)
        n_tokens = max(len(text.tokens) for text in some)
        self._blocks = blocks
        self._parts = [Part(texts) for texts in in_parts(some, PART_TOKENS)]
        self._wanted, self._got = Rows(), Rows()
        with ExitStack() as stack:
            self._tuned = stack.enter_context(open_watched(tuned, n_tokens, blocks.n_threads))
            self.compressed = stack.enter_context(open_watched(tuned, n_tokens, blocks.n_threads, changes=True))
            self._close = stack.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def of(self, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The moments of a group's inputs in the compressed model, and the shift: (n_in, n_in) float32 both.

        Args:
            group: a weight that the graph reads behind those of the calls before.

        Raises:
            InputError: the models' graphs do not read it there, or its inputs are not finite.
        """
        sums = InputSums(self._blocks)
        for part in self._parts:
            wanted = inputs_of(self._tuned, part.texts, group, part.tuned, self._wanted)
            got = inputs_of(self.compressed, part.texts, group, part.compressed, self._got)
            sums.add(wanted, got, np.concatenate([text.weights for text in part.texts]))
        return sums.moments, sums.shift()


class InputSums:
    """What rows x of the fine-tune and x' of the compressed model are together.

    Args:
        blocks: the threads to work with.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._squares: torch.Tensor | None = None  # x'^T x'
        self._products: torch.Tensor | None = None  # (x - x')^T x'
        self._weight = 0.0

    def add(self, wanted: F32, got: F32, weights: F32) -> None:
        """Adds rows x and x', (n_rows, n_in) float32 each, that count by their weights (n_rows,). The rows are overwritten."""
        roots = np.sqrt(weights)[:, None]
        wanted -= got
        wanted *= roots
        got *= roots
        off, X = torch.from_numpy(wanted), torch.from_numpy(got)
        squares = self._blocks.gram(X)
        products = self._blocks.matmul(off.T, X)
        self._squares = squares if self._squares is None else self._squares.add_(squares)
        self._products = products.double() if self._products is None else self._products.add_(products)
        self._weight += float(weights.sum())

    @property
    def moments(self) -> torch.Tensor:
        """The mean of x' x'^T, (n_in, n_in) float32."""
        assert self._squares is not None
        H = self._squares / self._weight
        return ((H + H.T) / 2).float()

    def shift(self) -> torch.Tensor:
        """The shift of the module's text, (n_in, n_in) float32."""
        assert self._squares is not None
        assert self._products is not None
        damped = (self._squares + self._squares.T) / 2
        damped.diagonal().add_(SHIFT_DAMPING * float(damped.diagonal().mean()) + 1e-30)
        # The inverse of a symmetric matrix from the right: X A^-1 = (A^-1 X^T)^T.
        return torch.cholesky_solve(self._products.T, torch.linalg.cholesky(damped)).T.float().contiguous()


class Rows:
    """Memory for rows that is used again and again: new memory is cleared by the system first, which takes longer than to fill it."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def of(self, n_rows: int, n_in: int) -> F32:
        """(n_rows, n_in) float32, in place of those before."""
        if len(self._numbers) < n_rows * n_in:
            self._numbers = np.empty(n_rows * n_in, np.float32)
        return self._numbers[: n_rows * n_in].reshape(n_rows, n_in)


def inputs_of(rt: Runtime, texts: Sequence[Text], group: str, resume: ResumePoints, memory: Rows) -> F32:
    """The rows that a group's weights multiply, (n_tokens of all texts, n_in) float32, read on from where the texts were left.

    Raises:
        InputError: there are none, or they are not finite.
    """
    n_tokens, n_found = sum(len(text.tokens) for text in texts), 0
    found = memory.of(0, 0)

    def keep(_: str, rows: F32, __: object) -> None:
        nonlocal found, n_found
        if n_found == 0:
            found = memory.of(n_tokens, rows.shape[1])
        found[n_found : n_found + len(rows)] = rows
        n_found += len(rows)

    rt.visit_inputs([text.tokens for text in texts], [group], keep, resume)
    if n_found != n_tokens or not np.isfinite(found).all():
        raise InputError(
            f"the calibration: weight '{group}' multiplies {'numbers that are not finite' if n_found else 'nothing'} in this "
            "model. Calibrate again with it"
        )
    return found


def _first(texts: Sequence[Text], n_tokens: int) -> list[Text]:
    """Texts of about so many tokens at most, spread evenly over all."""
    total = sum(len(text.tokens) for text in texts)
    n_texts = max(1, min(len(texts), len(texts) * n_tokens // total))
    return [texts[i * len(texts) // n_texts] for i in range(n_texts)]
