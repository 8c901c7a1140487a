"""best.py under a metric: what the outputs lose falls, what is stored is what the errors say."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.compress.best import Mix, compress
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.spectrum import leading_under
from tests.support.compressed import low_rank, stored
from tests.support.moments import inputs, moments

MIXES = [Mix(0, (16, 12, 4)), Mix(1, ()), Mix(2, (8,)), Mix(0, (8,))]


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("shape", [(40, 64), (64, 40)], ids=str)
def test_both_errors_are_of_what_is_stored(mix: Mix, shape: tuple[int, int]) -> None:
    D = low_rank(*shape, 12)
    metric = Metric(moments(inputs(shape[1], 300)))
    with open_blocks(1) as blocks:
        c = compress(D, mix, blocks, metric=metric)
    E = D.double().numpy() - stored(c, shape)
    assert c.error == pytest.approx(np.linalg.norm(E), rel=1e-4)
    assert c.weighted_error == pytest.approx(float(((E @ metric.H.double().numpy()) * E).sum()) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_outputs_lose_less_than_without(mix: Mix) -> None:
    D = low_rank(64, 48, 16)
    metric = Metric(moments(inputs(48, 300)))
    with open_blocks(1) as blocks:
        plain, weighted = compress(D, mix, blocks), compress(D, mix, blocks, metric=metric)
    assert weighted.weighted_error is not None
    E = D.double().numpy() - stored(plain, (64, 48))
    assert weighted.weighted_error < 0.9 * float(((E @ metric.H.double().numpy()) * E).sum()) ** 0.5
    assert weighted.error >= plain.error * 0.99


def test_threads_do_not_change_a_bit() -> None:
    D, metric = low_rank(600, 48, 12), Metric(moments(inputs(48, 300)))
    found = []
    for n_threads in (1, 2):
        with open_blocks(n_threads) as blocks:
            found.append(compress(D, Mix(1, (8, 8)), blocks, metric=metric))
    assert np.array_equal(stored(found[0], (600, 48)), stored(found[1], (600, 48)))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)], ids=str)
def test_the_factors_begin_as_the_best_of_their_rank(shape: tuple[int, int]) -> None:
    """No matrix of the rank is nearer under the metric: the truncated SVD of D L, by numpy."""
    D, metric = low_rank(*shape, 12), Metric(moments(inputs(shape[1], 300)))
    with open_blocks(1) as blocks:
        U, V = leading_under(D, 5, metric, blocks)
        error = metric.norm(D - U @ V, blocks)
    singular = np.linalg.svd((D.double() @ metric.root.double()).numpy(), compute_uv=False)
    assert error == pytest.approx(float(np.sqrt((singular[5:] ** 2).sum())), rel=1e-3)
