"""What a candidate keeps of a fine-tune: how far its probabilities are from the fine-tune's, and which problems it solves.

All of it on the same problems: prompt, right answer and end token are read (teacher forcing), and the probabilities after
every token are compared; then both models answer for themselves, greedily.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dqrelo_gguf import Runtime
from dqrelo_gguf.evaluate.divergence import F32, divergence
from dqrelo_gguf.evaluate.statistics import Mean
from dqrelo_gguf.model.base import GgufModel
from support.problems import Problem, is_right

MAX_ANSWER_TOKENS = 96
N_SEQUENCES = 32
N_CTX = 8192  # tokens of all sequences
LOGIT_BYTES = 1 << 28  # logits held at once


@dataclass(frozen=True)
class Kept:
    """What a candidate keeps.

    Args:
        kl_answers: KL(fine-tune || candidate) in nats, mean over the tokens of the answers, end token included.
        kl_all: the same over all tokens but the first.
        top1_answers: share of the answers' tokens where both find the same token most probable.
        top1_all: the same over all tokens.
        right: problems that the candidate answers right.
        same: problems that it answers word for word as the fine-tune does.
    """

    kl_answers: Mean
    kl_all: Mean
    top1_answers: Mean
    top1_all: Mean
    right: int
    same: int


@dataclass(frozen=True)
class Sequence:
    """Tokens of prompt, answer and end; `n_prompt` of them are the prompt's."""

    tokens: npt.NDArray[np.int32]
    n_prompt: int

    @property
    def n_rows(self) -> int:
        """Rows of logits that predict one of its tokens."""
        return len(self.tokens) - 1

    @property
    def answer_rows(self) -> slice:
        """Those that predict a token of the answer."""
        return slice(self.n_prompt - 1, self.n_rows)


class Yardstick:
    """A fine-tune's probabilities and answers, to measure candidates against. Close it: its logits lie in a file.

    Args:
        tuned: the fine-tune's GGUF.
        problems: to measure with.
        n_threads: of llama.cpp.
    """

    def __init__(self, tuned: Path, problems: list[Problem], n_threads: int) -> None:
        self.problems = problems
        self.n_threads = n_threads
        end = GgufModel(tuned).field("tokenizer.ggml.eos_token_id")
        assert end is not None
        with self._open(tuned) as rt:
            self.sequences = [self._encode(rt, problem, end.value) for problem in problems]
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the yardstick
            for _, rows in self._logits(rt):
                for row in rows:
                    row.tofile(self._file)
            self.texts = self._answers(rt)
        self._file.flush()
        self.right = self._n_right(self.texts)

    def close(self) -> None:
        """Frees the logits."""
        self._file.close()

    def measure(self, candidate: Path) -> Kept:
        """Compares a candidate with the fine-tune."""
        self._file.seek(0)
        n = len(self.problems)
        kl, same_top = np.zeros((2, n)), np.zeros((2, n))  # of answers, of all
        with self._open(candidate) as rt:
            for first, batch in self._logits(rt):
                for i, theirs in enumerate(batch, first):
                    ours = np.fromfile(self._file, np.float32, theirs.size).reshape(theirs.shape)
                    divergences = divergence(ours, theirs)
                    hits = ours.argmax(axis=1) == theirs.argmax(axis=1)
                    for k, rows in enumerate((self.sequences[i].answer_rows, slice(None))):
                        kl[k, i], same_top[k, i] = divergences[rows].sum(), hits[rows].sum()
            texts = self._answers(rt)
        n_answer = np.array([s.n_rows - s.n_prompt + 1 for s in self.sequences], np.float64)
        n_all = np.array([s.n_rows for s in self.sequences], np.float64)
        return Kept(
            Mean.of(kl[0], n_answer),
            Mean.of(kl[1], n_all),
            Mean.of(same_top[0], n_answer),
            Mean.of(same_top[1], n_all),
            self._n_right(texts),
            sum(a == b for a, b in zip(texts, self.texts, strict=True)),
        )

    def _open(self, model: Path) -> Runtime:
        return Runtime(model, n_ctx=N_CTX, n_seq_max=N_SEQUENCES, n_threads=self.n_threads)

    @staticmethod
    def _encode(rt: Runtime, problem: Problem, end: int) -> Sequence:
        """An answer is tokenized apart from its prompt, as it is generated."""
        prompt = rt.tokenize(problem.prompt)
        answer = rt.tokenize(problem.answer, add_special=False)
        return Sequence(np.concatenate([prompt, answer, np.array([end], np.int32)]), len(prompt))

    def _logits(self, rt: Runtime) -> Iterator[tuple[int, list[F32]]]:
        """The number of a first sequence, and the logits of it and of those after it, as many as are held at once."""
        first, n_rows = 0, 0
        for i, sequence in enumerate([*self.sequences, None]):
            if sequence is None or (n_rows + sequence.n_rows) * rt.n_vocab * 4 > LOGIT_BYTES:
                if first < i:
                    yield first, rt.logits([s.tokens[:-1] for s in self.sequences[first:i]])
                first, n_rows = i, 0
            if sequence is not None:
                n_rows += sequence.n_rows

    def _answers(self, rt: Runtime) -> list[str]:
        return rt.generate([p.prompt for p in self.problems], max_tokens=MAX_ANSWER_TOKENS)

    def _n_right(self, texts: list[str]) -> int:
        return sum(is_right(p, text) for p, text in zip(self.problems, texts, strict=True))
