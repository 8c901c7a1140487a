"""Equations 17 and 18, and the intervals of the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.evaluate.retention import Hits, Retention, TaskHits, retention_of, score_interval


def hits(n_right: int, n: int) -> Hits:
    return np.arange(n) < n_right


def kept(tasks: list[TaskHits], seed: int = 1) -> Retention:
    found = retention_of(tasks, seed)
    assert found is not None
    return found


def test_retention_and_drop_of_the_paper() -> None:
    found = kept([TaskHits(hits(10, 100), hits(90, 100), hits(70, 100))])
    assert found.retention.value == pytest.approx(60 / 80)
    assert found.drop.value == pytest.approx(20 / 80)
    assert found.drop.low == pytest.approx(1 - found.retention.high)
    assert found.drop.high == pytest.approx(1 - found.retention.low)


def test_the_mean_is_over_tasks_not_over_problems() -> None:
    tasks = [TaskHits(hits(0, 10), hits(10, 10), hits(10, 10)), TaskHits(hits(0, 90), hits(90, 90), hits(45, 90))]
    assert kept(tasks).retention.value == pytest.approx(0.75)


def test_the_interval_is_that_of_a_proportion() -> None:
    found = kept([TaskHits(hits(0, 400), hits(400, 400), hits(300, 400))]).retention
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)


def test_the_bootstrap_is_paired() -> None:
    # Where fine-tune and delta have the same problems right, the base being blank, nothing is lost in any resample.
    some = np.random.default_rng(0).random(50) < 0.5
    found = kept([TaskHits(np.zeros(50, bool), some, some)])
    assert (found.retention.low, found.retention.high) == (1.0, 1.0)


def test_a_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(3)
    task = TaskHits(rng.random(60) < 0.1, rng.random(60) < 0.9, rng.random(60) < 0.7)
    assert kept([task]) == kept([task])
    assert kept([task]) != kept([task], seed=2)


def test_resamples_without_a_gain_are_left_out_and_counted() -> None:
    found = kept([TaskHits(hits(1, 4), hits(2, 4), hits(2, 4))])
    assert found.n_undefined > 0
    assert np.isfinite([found.retention.low, found.retention.high]).all()


@pytest.mark.parametrize(("base", "tuned"), [(5, 5), (6, 5), (0, 0)])
def test_no_gain_has_no_retention(base: int, tuned: int) -> None:
    sound = TaskHits(hits(0, 10), hits(10, 10), hits(5, 10))
    without = TaskHits(hits(base, 10), hits(tuned, 10), hits(5, 10))
    assert retention_of([without], 1) is None
    assert retention_of([sound, without], 1) is None


def test_score_interval() -> None:
    found = score_interval(hits(60, 100), 1)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert found.value == 0.6
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.011)
