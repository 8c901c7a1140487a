"""Runs a base with blends of its deltas and writes logits: `python -m tests.support.blend_runs BASE OUT.npz DELTA...`.

A program, since a process runs deltas in one way only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tests.support.logits import Floats, open_model

Parts: TypeAlias = tuple[tuple[int, float], ...]
"""Numbers of deltas, each with its scale; empty is the base."""

AB: Parts = ((0, 0.6), (1, 0.4))
BA: Parts = ((1, 0.4), (0, 0.6))
AWAY: Parts = ((0, 1.0), (1, -0.5))
ALL: Parts = ((0, 0.5), (1, -0.25), (2, 1.5))
ONE: Parts = ((2, 0.5),)
BASE: Parts = ()
SPARSE: Parts = ((0, 0.5), (3, 1.0))
SPARSE_AWAY: Parts = ((2, 1.0), (3, -0.5))
HALF_OFF: Parts = ((0, 0.0), (1, 1.0))

N_HEAD = 4

# The blends of a batch's rows, and how many tokens each row has.
CASES: dict[str, tuple[list[Parts], int]] = {
    "one token": ([AB], 1),
    "as many tokens as heads": ([AWAY], N_HEAD),
    "many tokens": ([ALL], 24),
    "one token each": ([AB, BASE, AWAY, ALL, ONE, BASE], 1),
    "prompts": ([AB, BASE, AWAY, ALL, ONE, BA], 12),
    "prompts that are folded": ([AB, BASE, SPARSE, ONE], 40),
    "no blends": ([ONE, BASE, ((0, 1.0),)], 5),
    "a sparse part": ([SPARSE, BASE, SPARSE_AWAY, ((3, 0.5),)], 6),
    "scale 0": ([HALF_OFF, AB], 5),
}


def tokens_of(n_vocab: int, row: int, n: int) -> np.ndarray:
    """The tokens of a row, other ones for each row."""
    return np.random.default_rng(row).integers(3, n_vocab, n, dtype=np.int32)


def main(base: str, out: str, *deltas: str) -> None:
    """The blends of `CASES` at once and, where a context has fewer sequences, a few at a time."""
    arrays: dict[str, Floats] = {}
    for n_seq_max in (8, 2):
        with open_model(Path(base), n_seq_max=n_seq_max) as rt:
            loaded = [rt.load_delta(path) for path in deltas]
            for name, (rows, n) in CASES.items():
                tokens = [tokens_of(rt.n_vocab, i, n) for i in range(len(rows))]
                blends = [[(loaded[k], scale) for k, scale in parts] or None for parts in rows]
                for kind, logits in (("with", rt.logits(tokens, blends)), ("base", rt.logits(tokens))):
                    arrays |= {f"{name}|{i}|{kind}|{n_seq_max}": row for i, row in enumerate(logits)}
    np.savez(out, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
