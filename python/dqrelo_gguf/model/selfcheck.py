"""The check before encoding: every weight of the fine-tune is finite and resembles the base's as a fine-tune's does.

A wrong base, or rows in another order (Llama's q and k are permuted by one converter and not by another), would give a
delta that encodes well enough and a model that talks fluent nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.errors import BaseMismatchError, NonFiniteError
from dqrelo_gguf.model.adapter import Factors
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.pairing import Pair

# Smallest cosine between a weight and its base that counts as a fine-tune. Measured over three pairs of 0.95 to 135 M
# parameters: fine-tunes have 0.52 or more (an output matrix after long training; other matrices 0.82, norms 0.99), also
# over a Q2_K base; permuted q and k at most 0.22, matrices of another layer at most 0.02. One weight is enough to refuse.
MIN_COSINE = 0.3
# Rows of each weight that are compared with the base.
SAMPLE_ROWS = 64
# Vectors with fewer elements show nothing.
_MIN_ELEMENTS = 32
# A row of the base that has this cosine with some row of the fine-tune has found itself.
_FOUND = 0.8


@dataclass(frozen=True)
class Checked:
    """What the check found out about a weight."""

    cosine: float
    identical: bool


def check_weight(pair: Pair, base: GgufModel, tuned: Model, blocks: Blocks, min_cosine: float = MIN_COSINE) -> Checked:
    """Checks one weight.

    Args:
        pair: the weight.
        base: what the delta is against.
        tuned: the fine-tune.
        blocks: the threads to work with.
        min_cosine: smallest cosine with the base.

    Raises:
        NonFiniteError: the fine-tune holds NaN or infinity.
        BaseMismatchError: the weight is not a fine-tune of the base's.
    """
    values = tuned.load(pair.tuned_name, blocks)
    flat = values.reshape(-1, values.shape[-1])
    n_bad = count_non_finite(flat, blocks)
    if n_bad:
        raise NonFiniteError(f"{tuned.label}: {pair.name}: {n_bad} of {values.size} values are NaN or infinite")
    rows = _sample(len(flat))
    ours, theirs = _base_rows(pair.name, base, rows), flat[rows]
    value = _check_rows(pair.name, base, ours, theirs, min_cosine=min_cosine, cause=lambda: _cause(ours, rows, flat))
    identical = np.array_equal(ours, theirs) and np.array_equal(base.load(pair.name, blocks).reshape(flat.shape), flat)
    return Checked(value, identical)


def check_factors(pair: Pair, base: GgufModel, factors: Factors, min_cosine: float = MIN_COSINE) -> Checked:
    """Checks what an adapter makes of one weight, as `check_weight` does, by some of its rows.

    Raises:
        NonFiniteError: the product of the factors holds NaN or infinity.
        BaseMismatchError: the weight is another one with the adapter.
    """
    rows = _sample(prod(pair.ne[1:]))
    ours = _base_rows(pair.name, base, rows)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = ours + factors.rows(rows)
    if not np.isfinite(theirs).all():
        raise NonFiniteError(f"{pair.name}: with the adapter, values are NaN or infinite")
    cause = "Is it an adapter of another base, or its scale another one (alpha, rank)?"
    value = _check_rows(pair.name, base, ours, theirs, min_cosine=min_cosine, cause=lambda: cause)
    return Checked(value, not (factors.u.any() and factors.v.any()))


def _sample(n_rows: int) -> npt.NDArray[np.intp]:
    """The numbers of the rows that are compared."""
    return np.unique(np.linspace(0, n_rows - 1, min(SAMPLE_ROWS, n_rows)).astype(np.intp))


def _base_rows(name: str, base: GgufModel, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    ours = base.load_rows(name, rows)
    if not np.isfinite(ours).all():
        raise NonFiniteError(f"{base.label}: {name}: holds NaN or infinity")
    return ours


def _check_rows(
    name: str,
    base: GgufModel,
    ours: npt.NDArray[np.float32],
    theirs: npt.NDArray[np.float32],
    *,
    min_cosine: float,
    cause: Callable[[], str],
) -> float:
    """The cosine of some rows of the base and of the fine-tune, which must be those of the same weight."""
    value = cosine(ours, theirs)
    # A weight that is zero in the base, such as an unused bias, has no direction to keep.
    is_telling = ours.size >= _MIN_ELEMENTS and bool(ours.any())
    if value < min_cosine and is_telling:
        raise BaseMismatchError(
            f"{name}: the fine-tune's values have a cosine of {value:.2f} with base {base.label}, expected at "
            f"least {min_cosine}. {cause()}"
        )
    if min_cosine > 0 and is_telling:
        _check_size(name, ours, theirs, 1 / min_cosine)
    return value


def _check_size(name: str, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32], max_ratio: float) -> None:
    """A change at a right angle that leaves a cosine c makes a weight 1/c times as large; no fine-tune does more."""
    ratio = math.sqrt(_square_sum(theirs) / _square_sum(ours))
    if not 1 / max_ratio <= ratio <= max_ratio:
        raise BaseMismatchError(
            f"{name}: the fine-tune's values are {ratio:.3g} times as large as the base's, expected {1 / max_ratio:.2g} to "
            f"{max_ratio:.2g} times. Were they quantised (bitsandbytes, fp8, GPTQ, AWQ) and saved without their scales?"
        )


def _square_sum(values: npt.NDArray[np.float32]) -> float:
    return float((values.astype(np.float64) ** 2).sum())


def count_non_finite(values: npt.NDArray[np.float32], blocks: Blocks) -> int:
    """How many values of a matrix are NaN or infinite."""
    matrix = torch.from_numpy(values)

    def count(s: slice) -> int:
        # NaN and infinity survive a sum, so that a finite sum needs no second look.
        if math.isfinite(float(matrix[s].sum())):
            return 0
        return int((~torch.isfinite(matrix[s])).sum())

    return sum(blocks.run(count, row_slices(*values.shape)))


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The cosine of the angle between two arrays; 0 if one is zero."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    # Sums and not dot products: those would wake the threads of numpy's BLAS for very little work.
    xx, yy, xy = (x * x).sum(), (y * y).sum(), (x * y).sum()
    length = math.sqrt(float(xx * yy))
    return float(xy) / length if length > 0 else 0.0


def _cause(ours: npt.NDArray[np.float32], rows: npt.NDArray[np.intp], tuned: npt.NDArray[np.float32]) -> str:
    """The likely reason: the base's rows in another order, or another base.

    Args:
        ours: (n, n_in), rows of the base.
        rows: (n,), their numbers.
        tuned: (n_out, n_in), the whole fine-tune.
    """
    if ours.shape[0] > 1:
        lengths = np.linalg.norm(ours, axis=1, keepdims=True) + 1e-30, np.linalg.norm(tuned, axis=1) + 1e-30
        match = (ours @ tuned.T) / lengths[0] / lengths[1]  # (n, n_out)
        best = match.argmax(axis=1)
        found = match.max(axis=1) >= _FOUND
        if found.mean() > 0.5 and (best[found] != rows[found]).mean() > 0.5:
            return (
                "Its rows are the base's in another order: one of the two was converted without the permutation of "
                "its architecture (Llama's q and k). Convert both with the same llama.cpp"
            )
    return (
        f"Is {'it' if ours.shape[0] == 1 else 'this'} a fine-tune of another base, or was the weight initialised anew?"
    )
