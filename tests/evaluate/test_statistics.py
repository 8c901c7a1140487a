"""Means, percentiles and errors of a comparison, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.evaluate.divergence import Compared
from dqrelo_gguf.evaluate.statistics import Mean, TextFigures, recovered


def compared(kl: list[float], nll: list[float], same: list[bool]) -> Compared:
    return Compared(np.array(kl, np.float32), np.array(nll, np.float32), np.array(same))


def test_mean_counts_tokens_and_its_error_counts_texts() -> None:
    same_within = Mean.of(np.array([10.0, 0.0, 10.0, 0.0]), np.array([10.0] * 4))
    assert same_within.value == 0.5
    assert same_within.error == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)  # as four draws, not forty
    uneven = Mean.of(np.array([3.0, 0.0]), np.array([1.0, 2.0]))
    assert uneven.value == 1.0


def test_error_over_tokens_is_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 500)
    mean = Mean.over_tokens(values)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.std(ddof=1) / 500**0.5, rel=1e-6)
    assert Mean.over_tokens(np.array([2.0])) == Mean(2.0, 0.0)


def test_figures() -> None:
    tuned = np.array([1.0, 2.0, 0.5, 0.1], np.float32)
    figures = TextFigures.of(
        tuned, compared([0.0, 0.4, 0.1, 0.3], [1.0, 3.0, 0.5, 0.2], [True, False, True, True]), [3, 1]
    )
    dp = np.exp(-np.array([1.0, 3.0, 0.5, 0.2])) - np.exp(-np.array([1.0, 2.0, 0.5, 0.1]))
    assert figures.kl.value == pytest.approx(0.2)
    assert figures.kl_window_error == pytest.approx(Mean.of(np.array([0.5, 0.3]), np.array([3.0, 1.0])).error, rel=1e-6)
    assert (figures.kl_min, figures.kl_max, figures.kl_median) == pytest.approx((0.0, 0.4, 0.2))
    assert figures.kl_percentiles["90"] == pytest.approx(0.37)
    assert figures.same_top.value == 0.75
    assert figures.same_top.error == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert figures.dp_mean.value == pytest.approx(dp.mean(), rel=1e-6)
    assert figures.dp_rms.value == pytest.approx((dp**2).mean() ** 0.5, rel=1e-6)
    assert figures.ppl.value == pytest.approx(np.exp((1 + 3 + 0.5 + 0.2) / 4), rel=1e-6)
    assert figures.log_ppl_ratio.value == pytest.approx((1 + 0.1) / 4, rel=1e-5)


def test_recovered_is_the_share_of_the_way() -> None:
    tuned = np.zeros(2, np.float32)
    base, half, whole = (
        TextFigures.of(tuned, compared([kl, kl], [0, 0], [True, True]), [2]) for kl in (0.5, 0.25, 0.0)
    )
    assert [recovered(x, base) for x in (base, half, whole)] == [0.0, 0.5, 1.0]
    assert recovered(whole, whole) is None
