"""Runs a base with deltas and writes logits: `python -m tests.support.composed_runs BASE DELTA DELTA OUT.npz`.

A program, since a process runs deltas in one way only. The rows that it writes: one delta alone, a mixed batch with scales
and rows without a delta, single tokens of a mixed batch, and again after the deltas were freed and loaded in the other order.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import OTHER, TEXT, Floats, Tokens, open_model

# Each has the logits with the deltas, and the base's for the same batch.
Rows: TypeAlias = dict[str, tuple[Floats, Floats]]

NO_DELTA = "without"  # The names of rows without a delta end with it.


def batches(rt: Runtime, first: Delta, second: Delta, rows: Rows, when: str) -> None:
    text, other = rt.tokenize(TEXT), rt.tokenize(OTHER)
    cases: dict[str, tuple[list[Tokens], list[Delta | None], list[float]]] = {
        "alone": ([text], [first], [1.0]),
        "half": ([text], [second], [0.5]),
        "mixed": ([text, other, text, other, text], [first, None, second, first, None], [1.0, 1.0, 1.0, 0.5, 1.0]),
        "one token each": ([text[:1]] * 4, [second, None, first, second], [1.0, 1.0, 1.0, 0.25]),
    }
    for name, (tokens, deltas, scales) in cases.items():
        logits = rt.logits(tokens, deltas, scale=scales)
        without = rt.logits(tokens)
        for i, delta in enumerate(deltas):
            rows[f"{when}, {name}, row {i} {'with' if delta else NO_DELTA}"] = logits[i], without[i]


def main(base: str, first: str, second: str, out: str) -> None:
    rows: Rows = {}
    with open_model(Path(base)) as rt:
        with rt.load_delta(first) as a, rt.load_delta(second) as b:
            batches(rt, a, b, rows, "first")
        with rt.load_delta(second) as a, rt.load_delta(first) as b:
            batches(rt, a, b, rows, "swapped")
    arrays: dict[str, Any] = {f"{name}|{i}": array for name, pair in rows.items() for i, array in enumerate(pair)}
    np.savez(out, **arrays)


def read(path: Path) -> Rows:
    with np.load(path) as arrays:
        names = dict.fromkeys(key.rsplit("|", 1)[0] for key in arrays.files)
        return {name: (arrays[f"{name}|0"], arrays[f"{name}|1"]) for name in names}


if __name__ == "__main__":
    main(*sys.argv[1:])
