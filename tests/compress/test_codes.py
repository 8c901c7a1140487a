"""codes.py: rows of few bits, against brute force and against what quantisers of Gaussian variables reach."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.codes import (
    MAX_PLANES,
    Coded,
    code_rows,
    code_rows_by_tensors,
    decode_columns,
    decode_rows,
    encode_rows,
    levels_of,
    places,
    planes_of,
    rows_of,
)
from dqrelo_gguf.compress.mixes import LOSS
from dqrelo_gguf.compress.signs import pack_signs
from dqrelo_gguf.native import core


def rows(k: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((k, n), generator=torch.Generator().manual_seed(seed))


def loss(X: torch.Tensor, coded: Coded) -> torch.Tensor:
    """The share of each row's energy that is lost."""
    return (X - coded.values).square().sum(dim=1) / X.square().sum(dim=1)


def brute_force(x: np.ndarray, n_planes: int) -> float:
    """The least loss of any choice of signs, each with the scales of least squares."""
    best = float("inf")
    for signs in product(product((-1.0, 1.0), repeat=len(x)), repeat=n_planes):
        S = np.array(signs).T
        scales = np.linalg.lstsq(S, x, rcond=None)[0]
        best = min(best, float(((x - S @ scales) ** 2).sum()))
    return best / float((x**2).sum())


@pytest.mark.parametrize("seed", range(6))
def test_one_plane_is_the_best_of_all_signs(seed: int) -> None:
    x = rows(1, 8, seed)
    expected = brute_force(x[0].double().numpy(), 1)
    # The scale is rounded to BF16, 2^-9 of it at most; the loss of a row is flat around its best scale.
    assert float(loss(x, code_rows(x, 1))) == pytest.approx(expected, abs=1e-5)


def test_two_planes_are_near_the_best_of_all_signs() -> None:
    got, least = [], []
    for seed in range(12):
        x = rows(1, 6, seed)
        got.append(float(loss(x, code_rows(x, 2))))
        least.append(brute_force(x[0].double().numpy(), 2))
    assert all(g >= b - 1e-5 for g, b in zip(got, least, strict=True))
    # Six elements have no distribution to rely on, so that one step of Lloyd's ends in local minima.
    assert np.mean(got) < np.mean(least) + 0.06


@pytest.mark.parametrize("n_planes", range(1, 9))
def test_gaussian_rows_lose_what_the_mixes_assume(n_planes: int) -> None:
    X = rows(64, 1536)
    measured = float(loss(X, code_rows(X, n_planes)).mean())
    # The table has four digits; rows of 1536 elements vary by a few per cent.
    assert measured == pytest.approx(LOSS[n_planes], rel=0.06, abs=6e-5)


@pytest.mark.parametrize("n_planes", [1, 2, 3, 5])
def test_values_are_the_signs_times_the_scales(n_planes: int) -> None:
    X = rows(5, 40)
    coded = code_rows(X, n_planes)
    signs = torch.stack([2.0 * ((coded.codes >> q) & 1) - 1 for q in range(n_planes)])
    assert torch.allclose(coded.values, torch.einsum("qkn,kq->kn", signs, coded.scales), atol=1e-6)
    assert torch.equal(coded.scales, coded.scales.bfloat16().float())


@pytest.mark.parametrize("n_planes", range(1, MAX_PLANES + 1))
def test_each_number_takes_the_nearest_value_of_its_row(n_planes: int) -> None:
    X = rows(7, 300, n_planes)
    X[:, :5] = 0
    coded = code_rows(X, n_planes)
    levels, _, _ = levels_of(coded.scales)
    least = (X[:, :, None] - levels[:, None, :]).abs().amin(dim=2)
    assert torch.allclose((X - coded.values).abs(), least, atol=1e-6)
    # sign(0) is -1 (paper, Eq. 7): a zero takes the value below.
    assert bool((coded.values[:, :5] < 0).all())


@pytest.mark.parametrize("n_planes", range(1, MAX_PLANES + 1))
@pytest.mark.parametrize("n", [8, 300, 1031])  # fewer than a chunk, and some that fill no vector
def test_native_code_is_the_same_in_tensors(n_planes: int, n: int) -> None:
    X = rows(9, n, n_planes)
    X[0], X[1, 1:], X[2] = 0, 0, X[2].round()
    native, tensors = code_rows(X, n_planes), code_rows_by_tensors(X, n_planes)
    # Sums in another sequence may round a scale to the BF16 beside it. Rows of fewer numbers than values have no one solution.
    assert bool((loss(X, native)[3:] <= 1.02 * loss(X, tensors)[3:] + 1e-3).all())
    if n > 2**n_planes:
        assert torch.allclose(native.scales[3:], tensors.scales[3:], rtol=2**-7, atol=1e-4)
        assert float((native.codes[3:] == tensors.codes[3:]).float().mean()) > 0.99
    assert bool(torch.isfinite(native.values).all())


def test_native_code_refuses_what_it_cannot_code() -> None:
    for X, n_planes in ((rows(2, 8), 0), (rows(2, 8), MAX_PLANES + 1), (rows(2, 8)[0], 1)):
        with pytest.raises(ValueError, match="expected a matrix"):
            core.code_rows(X.numpy(), n_planes, 1.0)
    with pytest.raises(TypeError):  # It would be copied.
        core.code_rows(rows(8, 8).T.numpy(), 1, 1.0)


@pytest.mark.parametrize(
    "row", [torch.zeros(16), torch.ones(16), torch.tensor([1.0] + [0.0] * 15), torch.full((16,), 1e-30)]
)
@pytest.mark.parametrize("n_planes", [1, 3])
def test_rows_without_a_distribution_stay_finite(row: torch.Tensor, n_planes: int) -> None:
    coded = code_rows(row[None], n_planes)
    assert bool(torch.isfinite(coded.values).all())
    assert float((row - coded.values[0]).norm()) <= float(row.norm()) * 1.01


def test_a_row_does_not_depend_on_the_others_or_on_threads() -> None:
    X = rows(40, 24 * 1024)  # several blocks
    alone = code_rows(X[7:8], 2)
    for n_threads in (1, 3):
        with open_blocks(n_threads) as blocks:
            together = encode_rows(X, 2, torch.empty_like(X), blocks)
        assert torch.equal(together.values[7], alone.values[0])
        assert torch.equal(together.codes[7], alone.codes[0])


def test_planes_and_rows_of_a_mix() -> None:
    assert [(s.start, s.stop) for s in planes_of((5, 3, 3))] == [(0, 5), (5, 8), (8, 11)]
    assert [((s.start, s.stop), n) for s, n in rows_of((5, 3, 3))] == [((0, 3), 3), ((3, 5), 1)]
    assert list(rows_of(())) == []


def test_columns_decode_like_rows() -> None:
    rng = np.random.default_rng(0)
    ranks, n = (5, 2, 1), 16
    signs = rng.standard_normal((2, 8, n))
    scale = rng.standard_normal((2, 8)).astype(np.float32)
    as_rows = decode_rows(pack_signs(signs), scale, ranks)
    as_columns = decode_columns(pack_signs(signs.transpose(0, 2, 1)), scale, ranks)
    assert as_rows.shape == (2, 5, n)
    assert np.array_equal(as_columns, as_rows.transpose(0, 2, 1))
    expected = sum(scale[1, c] * np.where(signs[1, c] > 0, 1, -1) for c in (0, 5, 7))  # vector 0 has planes 0, 1 and 2
    assert np.allclose(as_rows[1, 0], expected)


@pytest.mark.parametrize("n_planes", range(1, MAX_PLANES + 1))
def test_places_are_those_of_a_search(n_planes: int) -> None:
    """Also of elements that are a middle themselves, of middles that are equal, and of an infinite one."""
    generator = torch.Generator().manual_seed(n_planes)
    middles = torch.randn((5, 2**n_planes - 1), generator=generator).round(decimals=1).sort(dim=1).values
    middles[0] = torch.inf
    X = torch.cat([torch.randn((5, 300), generator=generator), middles, torch.full((5, 1), -torch.inf)], dim=1)
    assert torch.equal(places(middles, X), torch.searchsorted(middles, X))
