"""best.py with planes.py and sign_factors.py: what is stored is what the error says, and each part earns its bytes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.best import Mix, compress
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.mixes import LOSS
from dqrelo_gguf.compress.planes import column_scales, subtract_planes
from tests.support.compressed import gaussian, low_rank, stored

MIXES = [
    Mix(0, (16, 12, 4)),
    Mix(1, ()),
    Mix(2, (8,)),
    Mix(3, (8, 8)),
    Mix(0, (8,)),
    Mix(2, (), scale_per_row=False),
    Mix(1, (8, 8), scale_per_row=False),
]


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("shape", [(40, 64), (64, 40)], ids=str)
def test_the_error_is_of_what_is_stored(mix: Mix, shape: tuple[int, int]) -> None:
    D = low_rank(*shape, 12)
    before = D.clone()
    with open_blocks(1) as blocks:
        c = compress(D, mix, blocks)
    assert torch.equal(D, before)
    expected = np.linalg.norm(D.double().numpy() - stored(c, shape))
    assert c.error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_threads_do_not_change_a_bit(mix: Mix) -> None:
    D = low_rank(600, 1024, 12)
    results = []
    for n_threads in (1, 3):
        with open_blocks(n_threads) as blocks:
            results.append(compress(D, mix, blocks))
    a, b = results
    assert a.error == b.error
    assert np.array_equal(stored(a, (600, 1024)), stored(b, (600, 1024)))


def test_two_planes_of_a_gaussian_matrix() -> None:
    """The limit of two bits a number is 0.25 (rate-distortion), of a scalar quantiser 0.3428; the paper's method reaches 0.57."""
    D = gaussian(512, 1024)
    with open_blocks(2) as blocks:
        assert compress(D, Mix(2, ()), blocks).error / float(D.norm()) < 0.345


def test_column_scales_pay() -> None:
    """Columns of unequal size: row scales alone lose more."""
    D = gaussian(64, 128) * torch.linspace(0.2, 2.0, 128)
    with open_blocks(1) as blocks:
        R = D.clone()
        planes = subtract_planes(R, 1, column_scales(R, 1, blocks), blocks)
        plain = D - D.abs().mean(dim=1, keepdim=True) * D.sign()
    assert float(R.norm()) < 0.93 * float(plain.norm())
    assert float(planes.column_scales.mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n_planes", [1, 2, 3])
def test_columns_of_any_sizes_lose_what_even_ones_lose(n_planes: int) -> None:
    """Sizes that differ by a factor of 50: the prediction counts on it that column scales make up for them."""
    D = gaussian(512, 256) * torch.exp(gaussian(1, 256, 1).clamp(-2, 2))
    with open_blocks(1) as blocks:
        R = D.clone()
        subtract_planes(R, n_planes, column_scales(R, n_planes, blocks), blocks)
    assert float(R.square().sum() / D.square().sum()) == pytest.approx(LOSS[n_planes], rel=0.03)


def test_a_column_of_zeros_stays_finite() -> None:
    D = gaussian(16, 32)
    D[:, 3] = 0
    with open_blocks(1) as blocks:
        for mix in (Mix(2, ()), Mix(1, (8,)), Mix(0, (8,)), Mix(2, (8,), scale_per_row=False)):
            c = compress(D, mix, blocks)
            assert np.isfinite(stored(c, (16, 32))).all()


def test_a_matrix_of_zeros_is_stored_as_zeros() -> None:
    with open_blocks(1) as blocks:
        for mix in (Mix(2, ()), Mix(1, (8,)), Mix(0, (8, 8)), Mix(1, (8,), scale_per_row=False)):
            c = compress(torch.zeros(16, 32), mix, blocks)
            assert c.error == 0
            assert np.array_equal(stored(c, (16, 32)), np.zeros((16, 32)))


def test_rounds_pay() -> None:
    """Vectors that are coded again for what the others leave lose less than those of the SVD, each coded by itself."""
    D = low_rank(96, 128, 24)
    with open_blocks(1) as blocks:
        fitted = compress(D, Mix(0, (24, 24, 16)), blocks).error
        alone = _coded_alone(D, (24, 24, 16), blocks)
    assert fitted < 0.95 * alone


def _coded_alone(D: torch.Tensor, ranks: tuple[int, ...], blocks: Blocks) -> float:
    from dqrelo_gguf.compress.sign_factors import start
    from dqrelo_gguf.compress.spectrum import leading

    factors = start(leading(D, ranks[0], blocks), ranks, blocks)
    return float((D - factors.a.values.T @ factors.b.values).norm())


def test_one_vector_of_one_bit_is_near_the_best_of_all_signs() -> None:
    """All 2^(4 + 8) choices of signs of one pair, each with its best scale; the seven other vectors are left out by weight."""
    ratios = []
    for seed in range(5):
        u, v = gaussian(4, 1, seed), gaussian(1, 8, seed + 100)
        D = u @ v
        least = min(
            float(D.square().sum() - (a @ D @ b) ** 2 / 32)
            for a in map(torch.tensor, product((-1.0, 1.0), repeat=4))
            for b in map(torch.tensor, product((-1.0, 1.0), repeat=8))
        )
        with open_blocks(1) as blocks:
            got = _coded_alone(D, (1,), blocks) ** 2
        assert got >= least - 1e-4
        ratios.append(got / least)
    assert np.mean(ratios) < 1.05
