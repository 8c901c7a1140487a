"""Retention and drop: which share of what the fine-tune gained over the base a delta keeps, with bootstrap intervals.

arXiv:2604.16940, Eqs. 17 and 18: Retention = (delta - base) / (fine-tune - base), Drop = (fine-tune - delta) / (fine-tune -
base), means over tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hits = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]

N_RESAMPLES = 10_000
LEVEL = 0.95
_BATCH_NUMBERS = 1 << 22  # random numbers drawn at once


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that holds LEVEL of the bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskHits:
    """Which problems of a task each side answered right, [n_problems] each."""

    base: Hits
    tuned: Hits
    delta: Hits


@dataclass(frozen=True)
class Retention:
    """What a delta keeps.

    Args:
        retention: share of the gain that it keeps; 1 is the fine-tune.
        drop: share that it loses; 1 - retention.
        n_undefined: resamples without a gain, which are left out of the interval.
    """

    retention: Interval
    drop: Interval
    n_undefined: int


def retention_of(tasks: list[TaskHits], seed: int) -> Retention | None:
    """The mean over tasks. None where a task has no gain: there is nothing to keep.

    The bootstrap is paired: a resample takes the same problems, with what base, fine-tune and delta made of each.

    Args:
        tasks: at least one.
        seed: of the resamples.
    """
    value = float(np.mean([_share(*(hits.mean() for hits in (t.base, t.tuned, t.delta))) for t in tasks]))
    if any(t.tuned.mean() <= t.base.mean() for t in tasks):
        return None
    rng = np.random.default_rng(seed)
    resampled = np.mean([_resampled(t, rng) for t in tasks], axis=0)
    kept = resampled[np.isfinite(resampled)]
    tail = 50 * (1 - LEVEL)
    low, high = (float(x) for x in np.percentile(kept, [tail, 100 - tail])) if kept.size else (value, value)
    return Retention(Interval(value, low, high), Interval(1 - value, 1 - high, 1 - low), len(resampled) - len(kept))


def score_interval(hits: Hits, seed: int) -> Interval:
    """The share of right answers."""
    sums = _sums([hits], np.random.default_rng(seed))[0]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(sums / len(hits), [tail, 100 - tail])
    return Interval(float(hits.mean()), float(low), float(high))


def _resampled(task: TaskHits, rng: np.random.Generator) -> F64:
    base, tuned, delta = _sums([task.base, task.tuned, task.delta], rng)
    return _share(base, tuned, delta)


def _share(base: F64, tuned: F64, delta: F64) -> F64:
    """Eq. 17; NaN or infinite where the fine-tune gained nothing, negative where it lost."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(tuned > base, (delta - base) / (tuned - base), np.nan))


def _sums(columns: list[Hits], rng: np.random.Generator) -> F64:
    """Right answers of each column in each resample of the problems, [n_columns, N_RESAMPLES]."""
    hits = np.stack(columns).astype(np.float64)
    n = hits.shape[1]
    step = max(1, _BATCH_NUMBERS // n)
    parts = [
        hits[:, rng.integers(0, n, (min(step, N_RESAMPLES - at), n))].sum(axis=2) for at in range(0, N_RESAMPLES, step)
    ]
    return np.concatenate(parts, axis=1)
