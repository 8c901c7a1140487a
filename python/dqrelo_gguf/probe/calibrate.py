"""Calibration: the second moments of what each weight of the fine-tune multiplies, while it reads text.

The text is a file of the user's, or nobody's: the base writes some, the fine-tune goes on from the middle of it, and writes
some from the beginning. The moments of all weights may be larger than the memory, so a group of weights is measured at a time, and the
text is read once for each group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.moments import FORMAT, SELF
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.output import new_file
from dqrelo_gguf.probe.tuned_model import Tokens, drawn_texts, open_plain, plain_tuned, start_of_text
from dqrelo_gguf.runtime.session import Runtime

# Tokens that base and fine-tune write each, and of a text at most.
N_SELF_TOKENS, N_TEXT_TOKENS = 4096, 256
N_SEQ = 16
SEED = 1
# Tokens that are read of a file at most, and at least.
MAX_FILE_TOKENS, MIN_FILE_TOKENS = 1 << 15, 256
# Bytes of the sums that are held at once, unless those of one weight are more.
GROUP_BYTES = 1 << 30
# Tokens that an expert's own moments need to count as much as those of all experts.
EXPERT_TOKENS = 64


def measure_moments(work: Work, pairs: Sequence[Pair], source: str, path: Path) -> None:
    """Writes a file of moments (convert/moments.py).

    Args:
        work: the conversion's inputs.
        pairs: the weights.
        source: SELF, or a text file.
        path: of the file; there is none yet.

    Raises:
        InputError: the text is unreadable or too short, the models write none, or there is no room.
    """
    text = None if source == SELF else _read(Path(source))
    n_mat = {p.name: int(np.prod(p.ne[2:], dtype=np.int64)) for p in pairs}
    sums = {p.name: n_mat[p.name] * p.ne[0] ** 2 for p in pairs}
    largest = max(GROUP_BYTES, 8 * max(sums.values()))
    with plain_tuned(work, "the calibration", 4 * sum(sums.values()) + largest) as tuned:
        texts = _self_texts(work, tuned) if text is None else _file_texts(work, tuned, text, source)
        n_tokens = sum(len(t) for t in texts)
        with open_plain(tuned, N_SEQ, N_TEXT_TOKENS + 1, work.blocks.n_threads, watch=True) as rt:
            leaders, aliases = _grouped(rt, texts[0], [p.name for p in pairs])
            groups = list(_in_groups({name: sums[name] for name in leaders}))
            with work.phases("calibrating", n_tokens * len(groups)) as progress, new_file(path, force=True) as out:
                out.write(
                    _header({p.name: p.ne for p in pairs if p.name in leaders}, leaders, aliases, source, n_tokens)
                )
                for group in groups:
                    moments = Sums(work.blocks, {p.name: (n_mat[p.name], p.ne[0]) for p in pairs if p.name in group})
                    for i in range(0, len(texts), N_SEQ):
                        some = texts[i : i + N_SEQ]
                        rt.visit_inputs(some, group, moments.add)
                        progress.step(sum(len(t) for t in some), "text")
                    for name in group:
                        out.write(moments.mean(name).tobytes())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"--calibrate {path}: is no readable UTF-8 text: {e}") from e


def _file_texts(work: Work, tuned: Path, text: str, source: str) -> list[Tokens]:
    """The file's tokens in pieces, each after the token that begins a text; the first ones of a long file."""
    with open_plain(tuned, N_SEQ, N_TEXT_TOKENS + 1, work.blocks.n_threads) as rt:
        start = start_of_text(rt)
        tokens = rt.tokenize(text, add_special=False)[:MAX_FILE_TOKENS]
    if len(tokens) < MIN_FILE_TOKENS:
        raise InputError(f"--calibrate {source}: has {len(tokens)} tokens, expected {MIN_FILE_TOKENS} at least")
    return [np.concatenate([start, tokens[i : i + N_TEXT_TOKENS]]) for i in range(0, len(tokens), N_TEXT_TOKENS)]


def _self_texts(work: Work, tuned: Path) -> list[Tokens]:
    """Text of the base that the fine-tune goes on from, and text of the fine-tune alone."""
    n_threads = work.blocks.n_threads
    with open_plain(Path(work.base.path), N_SEQ, N_TEXT_TOKENS + 1, n_threads) as rt:
        begun = list(_drawn(rt, N_SELF_TOKENS))
    rng = np.random.default_rng(SEED)
    begun = [t[: int(rng.integers(len(t) // 2, len(t) + 1))] for t in begun if len(t) >= 2]
    with open_plain(tuned, N_SEQ, 2 * N_TEXT_TOKENS + 1, n_threads) as rt:
        texts = [*_drawn(rt, N_SELF_TOKENS)]
        for i in range(0, len(begun), N_SEQ):
            some = begun[i : i + N_SEQ]
            longest = max(len(t) for t in some)
            drawn = rt.generate_tokens(
                some, max_tokens=N_TEXT_TOKENS + 1 - longest // 2, temperature=1.0, seed=SEED + i
            )
            texts += [np.concatenate([t, more])[: N_TEXT_TOKENS + 1] for t, more in zip(some, drawn, strict=True)]
    if sum(len(t) for t in texts) < MIN_FILE_TOKENS:
        raise InputError("--calibrate self: the models write no text of their own. Give a text file instead")
    return texts


def _drawn(rt: Runtime, n_tokens: int) -> Iterator[Tokens]:
    """Texts of so many tokens together, if so many come at all."""
    found, seed = 0, SEED
    while found < n_tokens and seed < SEED + n_tokens:  # a model may end each text at once
        for text in drawn_texts(rt, N_SEQ, N_TEXT_TOKENS, seed):
            found += len(text)
            yield text
        seed += N_SEQ


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

    def add(self, name: str, rows: npt.NDArray[np.float32], experts: npt.NDArray[np.int32] | None) -> None:
        """Adds rows; for `Runtime.visit_inputs`."""
        chosen = np.zeros(len(rows), np.int32) if experts is None else experts
        for e in np.unique(chosen):
            own = rows[chosen == e]
            self._sums[name][e] += self._blocks.gram(torch.from_numpy(own))
            self._counts[name][e] += len(own)

    def mean(self, name: str) -> npt.NDArray[np.float32]:
        """The mean of x x^T, ([n_expert,] n_in, n_in); frees the sums. Experts with few rows lean on the mean of all."""
        total, counts = self._sums.pop(name), self._counts.pop(name)
        if len(counts) == 1:
            return _symmetric(total[0] / max(counts[0], 1))
        pooled = total.sum(dim=0) / max(counts.sum(), 1) * EXPERT_TOKENS
        return np.stack(
            [_symmetric((own + pooled) / (n + EXPERT_TOKENS)) for own, n in zip(total, counts, strict=True)]
        )


def _symmetric(H: torch.Tensor) -> npt.NDArray[np.float32]:
    out: npt.NDArray[np.float32] = ((H + H.T) / 2).float().numpy()
    return out


def _header(
    shapes: dict[str, tuple[int, ...]], names: Sequence[str], aliases: dict[str, str], source: str, n_tokens: int
) -> bytes:
    """The header of a safetensors file whose tensors follow in this sequence."""
    table: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "aliases": json.dumps(aliases, sort_keys=True),
            "text": SELF if source == SELF else "file",
            "n_tokens": str(n_tokens),
        }
    }
    begin = 0
    for name in names:
        n_in, _, *experts = shapes[name]
        shape = [*experts[::-1], n_in, n_in] if np.prod(experts) > 1 else [n_in, n_in]
        end = begin + 4 * int(np.prod(shape, dtype=np.int64))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
