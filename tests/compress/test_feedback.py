"""feedback.py: against a literal loop, and against every choice of signs on tiny rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.codes import Coded, encode_rows, levels_of
from dqrelo_gguf.compress.feedback import Columns, Levels, feed_back_among, feed_back_by_tensors, shape_rows
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.native import core
from tests.support.moments import inputs, moments


def rows(k: int, n: int, seed: int = 4) -> torch.Tensor:
    return torch.randn((k, n), generator=torch.Generator().manual_seed(seed))


def shaped(X: torch.Tensor, parts: list[tuple[slice, int]], metric: Metric, n_threads: int = 1) -> list[Coded]:
    values = torch.empty_like(X)
    with open_blocks(n_threads) as blocks:
        return shape_rows(X, parts, metric, values, blocks)


def loss(E: torch.Tensor, metric: Metric) -> float:
    return float((E.double() @ metric.H.double() * E.double()).sum())


def literal(x: np.ndarray, scales: np.ndarray, H: np.ndarray, sequence: list[int]) -> np.ndarray:
    """One row, a number at a time: after each, the numbers that are left are solved for again."""
    levels = np.array(
        [sum(s * q for s, q in zip(signs, scales, strict=True)) for signs in product((-1, 1), repeat=len(scales))]
    )
    out, wanted = np.zeros_like(x), x.copy()
    for at, j in enumerate(sequence):
        out[j] = levels[np.abs(levels - wanted[j]).argmin()]
        rest = sequence[at + 1 :]
        if rest:
            done = sequence[: at + 1]
            # The best values of the rest: they cancel what the done ones lose, as far as H couples them.
            lost = (x - out)[done]
            wanted[rest] = x[rest] + np.linalg.solve(H[np.ix_(rest, rest)], H[np.ix_(rest, done)] @ lost)
    return out


@pytest.mark.parametrize("n_planes", [1, 2, 3])
@pytest.mark.parametrize("n", [8, 72, 136])  # blocks of 64 columns: less than one, and more
def test_it_is_the_literal_loop(n_planes: int, n: int) -> None:
    metric = Metric(moments(inputs(n, 3 * n)))
    X = rows(3, n)
    coded = shaped(X, [(slice(0, 3), n_planes)], metric)[0]
    H = metric.H.double().numpy()
    for x, scales, values in zip(X, coded.scales, coded.values, strict=True):
        expected = literal(x.double().numpy(), scales.double().numpy(), H, metric.sequence.tolist())
        # A number in the middle of two values may fall to either side, and what follows with it.
        same = np.isclose(values.numpy(), expected, atol=1e-4)
        assert same.all() or loss((x - values)[None], metric) == pytest.approx(
            loss((x - torch.from_numpy(expected).float())[None], metric), rel=0.1
        )


def test_codes_and_values_agree() -> None:
    metric = Metric(moments(inputs(40, 100)))
    parts = [(slice(0, 2), 3), (slice(2, 6), 1)]
    X = rows(6, 40)
    for coded in shaped(X, parts, metric):
        n_planes = coded.scales.shape[1]
        signs = 2.0 * ((coded.codes[:, None, :] >> torch.arange(n_planes)[None, :, None]) & 1) - 1
        assert torch.allclose((coded.scales[:, :, None] * signs).sum(dim=1), coded.values, atol=1e-6)
        assert torch.equal(coded.scales, coded.scales.bfloat16().float())


def test_nearer_to_the_best_of_all_choices_than_rounding() -> None:
    """12 numbers of one plane: all 4096 choices of signs, each with its best scale. Half of what rounding loses more is won back."""
    metric = Metric(moments(inputs(12, 60)), damping=0.02)
    H = metric.H.double().numpy()
    signs = np.array(list(product((-1.0, 1.0), repeat=12)))
    own = np.einsum("ci,ij,cj->c", signs, H, signs)
    won, possible = 0.0, 0.0
    for seed in range(20):
        x = rows(1, 12, seed)
        found = loss(x - shaped(x, [(slice(0, 1), 1)], metric)[0].values, metric)
        with open_blocks(1) as blocks:
            rounded = loss(x - encode_rows(x, 1, torch.empty_like(x), blocks).values, metric)
        wanted = x[0].double().numpy()
        best = float((wanted @ H @ wanted - (signs @ H @ wanted) ** 2 / own).min())
        assert best <= found * (1 + 1e-6)
        won, possible = won + rounded - found, possible + rounded - best
    assert won > 0.5 * possible


def test_threads_do_not_change_a_bit() -> None:
    metric = Metric(moments(inputs(32, 90)))
    X = rows(1500, 32)  # more than one thread's share of rows
    one, two = (shaped(X, [(slice(0, 700), 2), (slice(700, 1500), 1)], metric, n) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.codes, b.codes)


@pytest.mark.parametrize("n_planes", [(1, 1), (2, 1), (4, 3), (6, 2)])
def test_native_code_is_the_same_in_tensors(n_planes: tuple[int, int]) -> None:
    """Columns of a block, with rows of fewer values than others have."""
    n, k = 37, 21
    scales = [rows(k, b, b).abs() + 0.01 for b in n_planes]
    levels = torch.full((1 << n_planes[0], 2 * k), torch.inf)
    middles = torch.full(((1 << n_planes[0]) - 1, 2 * k), torch.inf)
    code_of = torch.zeros(levels.shape, dtype=torch.uint8)
    for i, own in enumerate(scales):
        values, between, codes = levels_of(own)
        levels[: values.shape[1], i * k : (i + 1) * k] = values.T
        middles[: between.shape[1], i * k : (i + 1) * k] = between.T
        code_of[: values.shape[1], i * k : (i + 1) * k] = codes.T
    share, x = 0.1 * rows(n, n), rows(n, 2 * k)
    x[0, :3] = torch.tensor([0.0, -0.0, 1e-30])
    found = []
    for feed_back in (feed_back_among, feed_back_by_tensors):
        values, errors, own = torch.empty_like(x), torch.empty_like(x), x.clone()
        codes = torch.empty(x.shape, dtype=torch.uint8)
        feed_back(Columns(own, share, Levels(levels, middles, code_of), values, codes, errors))
        assert torch.equal(errors, own - values)
        for i, own_scales in enumerate(scales):
            bits = codes[:, i * k : (i + 1) * k, None] >> torch.arange(own_scales.shape[1]) & 1
            assert torch.allclose(((2.0 * bits - 1) * own_scales).sum(dim=2), values[:, i * k : (i + 1) * k], atol=1e-5)
        found.append(values)
    assert float((found[0] == found[1]).float().mean()) > 0.99


def test_native_code_refuses_parts_that_do_not_fit() -> None:
    x, share, levels, middles = (torch.zeros(shape).numpy() for shape in ((4, 3), (4, 4), (2, 3), (1, 3)))
    whole = [x, share, levels, middles, levels.astype(np.uint8), x.copy(), x.astype(np.uint8), x.copy()]
    core.feed_back(*whole)
    for i, part in enumerate(whole):
        parts = [*whole]
        parts[i] = np.zeros((5, 3), part.dtype)
        with pytest.raises(ValueError, match="another shape"):
            core.feed_back(*parts)
