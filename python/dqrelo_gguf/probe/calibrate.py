"""Calibration: the second moments of what each weight of the fine-tune multiplies, while it reads text.

The text is a file of the user's, or the models write it (calibration_text.py). The moments of all weights may be larger than the
memory, so a group of weights is measured at a time, and the text is read once for each group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.moments import ANSWERS, FORMAT, NO_TOKEN, SELF, TOKENS, Text, in_parts
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.output import new_file
from dqrelo_gguf.probe.calibration_text import N_TEXT_TOKENS, texts_of
from dqrelo_gguf.probe.tuned_model import Tokens, open_watched, plain_tuned
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# Bytes of the sums that are held at once, unless those of one weight are more.
GROUP_BYTES = 1 << 30
# Tokens whose rows are held at once; a text more at most. They are fewer bytes than the sums of all but narrow models.
PART_TOKENS = 1024
# Tokens that an expert's own moments need to count as much as those of all experts.
EXPERT_TOKENS = 64


def measure_moments(work: Work, pairs: Sequence[Pair], source: str, path: Path) -> None:
    """Writes a file of moments (convert/moments.py).

    Args:
        work: the conversion's inputs.
        pairs: the weights.
        source: SELF, or a file: conversations (*.jsonl), or text.
        path: of the file; there is none yet.

    Raises:
        InputError: the text is unreadable or too short, the models write none, or there is no room.
    """
    n_mat = {p.name: int(np.prod(p.ne[2:], dtype=np.int64)) for p in pairs}
    sums = {p.name: n_mat[p.name] * p.ne[0] ** 2 for p in pairs}
    largest = max(GROUP_BYTES, 8 * max(sums.values()))
    with plain_tuned(work, "the calibration", 4 * sum(sums.values()), largest) as tuned:
        texts = texts_of(work, tuned, source)
        n_tokens = sum(len(t.tokens) for t in texts)
        with open_watched(tuned, N_TEXT_TOKENS + 1, work.blocks.n_threads) as rt:
            leaders, aliases = _grouped(rt, texts[0].tokens, [p.name for p in pairs])
            groups = list(_in_groups({name: sums[name] for name in leaders}))
            with (
                work.phases("calibrating", n_tokens * len(groups), unit="tokens") as progress,
                new_file(path, force=True) as out,
            ):
                out.write(_begin({p.name: p.ne for p in pairs}, leaders, aliases, source, texts))
                for group in groups:
                    moments = Sums(work.blocks, {p.name: (n_mat[p.name], p.ne[0]) for p in pairs if p.name in group})
                    for part in in_parts(texts, PART_TOKENS):
                        rt.visit_inputs([text.tokens for text in part], group, moments.show)
                        moments.add(part)
                        progress.step(sum(len(text.tokens) for text in part), "text")
                    for name in group:
                        out.write(moments.mean(name).tobytes())


def _grouped(rt: Runtime, text: Tokens, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The weights whose rows are shown, in the sequence of the graph, and those that read the same rows as one of them."""
    leaders: dict[str, None] = {}

    def note(name: str, *_: object) -> None:
        leaders[name] = None

    aliases = rt.visit_inputs([text], names, note)
    return list(leaders), aliases


def _in_groups(sums: dict[str, int]) -> Iterator[list[str]]:
    """Names whose sums (numbers of 8 bytes) are held at once, in sequence."""
    group: list[str] = []
    n_bytes = 0
    for name, n in sums.items():
        if group and n_bytes + 8 * n > GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(name)
        n_bytes += 8 * n
    if group:
        yield group


class Sums:
    """X^T X of some weights.

    Args:
        blocks: the threads to work with.
        shapes: matrices and row length of each weight.
    """

    def __init__(self, blocks: Blocks, shapes: dict[str, tuple[int, int]]) -> None:
        self._blocks = blocks
        self._sums = {n: torch.zeros((n_mat, n_in, n_in), dtype=torch.float64) for n, (n_mat, n_in) in shapes.items()}
        self._counts = {n: np.zeros(n_mat) for n, (n_mat, _) in shapes.items()}
        self._shown: dict[str, list[tuple[F32, Ints | None]]] = {}

    def show(self, name: str, rows: F32, experts: Ints | None) -> None:
        """Keeps the rows of a text's tokens, of each as many as it goes to experts; for `Runtime.visit_inputs`."""
        self._shown.setdefault(name, []).append((rows, experts))

    def add(self, texts: Sequence[Text]) -> None:
        """Adds the rows that were shown; they are those of these texts, one after the other."""
        token_weights = np.concatenate([text.weights for text in texts])
        for name, shown in self._shown.items():
            rows = np.concatenate([rows for rows, _ in shown])
            chosen = np.concatenate([np.zeros(len(r), np.int32) if e is None else e for r, e in shown])
            weights = np.repeat(token_weights, len(rows) // len(token_weights))
            rows *= np.sqrt(weights)[:, None]
            for e in np.unique(chosen):
                own = chosen == e
                self._sums[name][e] += self._blocks.gram(torch.from_numpy(rows[own]))
                self._counts[name][e] += float(weights[own].sum())
        self._shown = {}

    def mean(self, name: str) -> npt.NDArray[np.float32]:
        """The mean of x x^T, ([n_expert,] n_in, n_in); frees the sums. Experts with few rows lean on the mean of all."""
        total, counts = self._sums.pop(name), self._counts.pop(name)
        if len(counts) == 1:
            return _symmetric(total[0] / counts[0]) if counts[0] else _symmetric(total[0])
        pooled = total.sum(dim=0) / (counts.sum() or 1) * EXPERT_TOKENS
        return np.stack(
            [_symmetric((own + pooled) / (n + EXPERT_TOKENS)) for own, n in zip(total, counts, strict=True)]
        )


def _symmetric(H: torch.Tensor) -> npt.NDArray[np.float32]:
    out: npt.NDArray[np.float32] = ((H + H.T) / 2).float().numpy()
    return out


def _in_rows(texts: Sequence[Text]) -> Tokens:
    """A text a row, filled up: (n_texts, n_tokens) int32."""
    rows = np.full((len(texts), max(len(t.tokens) for t in texts)), NO_TOKEN, "<i4")
    for row, text in zip(rows, texts, strict=True):
        row[: len(text.tokens)] = text.tokens
    return rows


def _begin(
    shapes: dict[str, tuple[int, ...]],
    names: Sequence[str],
    aliases: dict[str, str],
    source: str,
    texts: Sequence[Text],
) -> bytes:
    """A safetensors file up to the moments, which follow in this sequence: its header and the text."""
    tokens, n_questions = _in_rows(texts), np.array([t.n_question for t in texts], "<i4")
    table: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "aliases": json.dumps(aliases, sort_keys=True),
            "text": SELF if source == SELF else "file",
            "n_tokens": str(sum(len(t.tokens) for t in texts)),
            "sequence": json.dumps(list(names)),
        }
    }
    begin = tokens.nbytes + n_questions.nbytes
    table[TOKENS] = {"dtype": "I32", "shape": list(tokens.shape), "data_offsets": [0, tokens.nbytes]}
    table[ANSWERS] = {"dtype": "I32", "shape": [len(texts)], "data_offsets": [tokens.nbytes, begin]}
    for name in names:
        n_in, _, *experts = shapes[name]
        shape = [*experts[::-1], n_in, n_in] if np.prod(experts) > 1 else [n_in, n_in]
        end = begin + 4 * int(np.prod(shape, dtype=np.int64))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tokens.tobytes() + n_questions.tobytes()
