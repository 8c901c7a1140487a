"""shared_scales.py: one scale a plane for the whole matrix, against a slow literal reference and against what is expected of it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.planes import subtract_even_planes
from dqrelo_gguf.compress.shared_scales import energies_left, shared_scales
from tests.support.compressed import gaussian

# The step of the best uniform quantiser of a Gaussian variable of variance 1, by the number of planes.
STEPS = {1: 1.5958, 2: 0.9957, 3: 0.5860}


def uneven(n_out: int, n_in: int, spread: float) -> torch.Tensor:
    rows, columns = gaussian(n_out, 1, 1), gaussian(1, n_in, 2)
    return gaussian(n_out, n_in) * torch.exp(spread * rows) * torch.exp(spread * columns)


def signs_by_hand(x: float, scales: np.ndarray) -> tuple[float, ...]:
    """The signs of the sum that is nearest to x."""
    options = product((-1.0, 1.0), repeat=len(scales))
    return min(options, key=lambda signs: abs(x - float(np.dot(signs, scales))))


@pytest.mark.parametrize("n_planes", [1, 2, 3])
def test_scales_and_signs_are_those_of_one_step_of_least_squares(n_planes: int) -> None:
    R = uneven(12, 16, 0.3)
    x = R.double().numpy().ravel()
    first = np.sqrt((x**2).mean()) * STEPS[n_planes] / 2 * 2.0 ** np.arange(n_planes)
    S = np.array([signs_by_hand(v, first) for v in x])
    expected = np.linalg.lstsq(S, x, rcond=None)[0]
    with open_blocks(1) as blocks:
        scales = shared_scales(R, n_planes, blocks)
        left = R.clone()
        planes = subtract_even_planes(left, n_planes, blocks)
    assert np.allclose(scales[0].double().numpy(), expected, rtol=2**-8, atol=1e-5)
    assert torch.equal(scales.bfloat16().float(), scales)
    assert planes.scales.shape == (n_planes, 1)
    assert planes.column_scales is None
    kept = np.array([np.dot(signs_by_hand(v, scales[0].double().numpy()), scales[0].double().numpy()) for v in x])
    assert np.allclose(left.numpy().ravel(), x - kept, atol=1e-6)


def test_one_plane_is_the_best_of_all_signs_and_scales() -> None:
    """Of 12 numbers, all 2^12 signs with the best scale of each."""
    for seed in range(5):
        R = gaussian(2, 8, seed)
        R[1, 4:] = 0.1  # so that 2^12 signs are all that matters
        x = R.double().numpy().ravel()
        least = min(
            float((x**2).sum() - np.dot(x, [*signs, 1, 1, 1, 1]) ** 2 / 16) for signs in product((-1.0, 1.0), repeat=12)
        )
        with open_blocks(1) as blocks:
            left = R.clone()
            subtract_even_planes(left, 1, blocks)
        assert float(left.double().square().sum()) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_the_loss_that_is_expected_is_the_measured_one(spread: float) -> None:
    D = uneven(512, 1024, spread)
    with open_blocks(2) as blocks:
        expected = energies_left(D, 3, blocks)
        assert float(expected[0]) == pytest.approx(float(D.double().square().sum()))
        for n_planes in (1, 2, 3):
            left = D.clone()
            subtract_even_planes(left, n_planes, blocks)
            measured = float(left.double().square().sum())
            assert float(expected[n_planes]) == pytest.approx(measured, rel=0.02)


def test_two_planes_of_a_gaussian_matrix_are_two_bits_a_number() -> None:
    """The best scalar quantiser of two bits loses 0.3428."""
    D = gaussian(1024, 1024)
    with open_blocks(2) as blocks:
        left = D.clone()
        subtract_even_planes(left, 2, blocks)
    assert float(left.norm() / D.norm()) < 0.3435


def test_threads_do_not_change_a_bit() -> None:
    D = uneven(600, 1024, 0.2)
    found = []
    for n_threads in (1, 3):
        with open_blocks(n_threads) as blocks:
            left = D.clone()
            planes = subtract_even_planes(left, 2, blocks)
            found.append((left, planes.scales, energies_left(D, 2, blocks)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_zeros_and_a_single_row_of_numbers_stay_finite() -> None:
    one = torch.zeros((16, 32))
    one[3] = 1.0
    for D in (torch.zeros((16, 32)), one):
        with open_blocks(1) as blocks:
            expected = energies_left(D, 3, blocks)
            left = D.clone()
            subtract_even_planes(left, 2, blocks)
        assert bool(expected.isfinite().all())
        assert bool((expected >= 0).all())
        assert bool(left.isfinite().all())
