"""pruning.py: what is kept, against literal versions and what is known of it, and what it is charged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import BLOCK_ELEMENTS, Blocks, open_blocks
from dqrelo_gguf.compress.pruning import keep_active, keep_largest, keep_random, most_kept, pruned_bytes
from tests.support.compressed import gaussian

F16_STEP = 2**-11


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def halves(D: torch.Tensor) -> torch.Tensor:
    return D.half().float()


# --- random ---


def test_random_keeps_so_many_and_scales_them() -> None:
    D = gaussian(40, 24)
    kept = keep_random(D, 96, seed=1)
    mask = kept != 0
    assert int(mask.sum()) == 96
    assert torch.equal(kept[mask], halves(10 * D)[mask])
    assert torch.equal(keep_random(D, 96, seed=1), kept)
    assert not torch.equal(keep_random(D, 96, seed=2), kept)
    assert not keep_random(D, 0, seed=1).any()
    assert torch.equal(keep_random(D, D.numel(), seed=1), halves(D))


def test_random_is_unbiased() -> None:
    """DARE's point: the mean over draws is D. With p = 1/4 a draw has the variance D^2 (1 - p) / p."""
    D, n_draws = halves(gaussian(16, 8)), 4000
    mean = sum(keep_random(D, 32, seed=i) for i in range(n_draws)) / n_draws
    assert isinstance(mean, torch.Tensor)
    deviation = (3 / n_draws) ** 0.5 * D.abs()
    assert bool(((mean - D).abs() < 5 * deviation).all())


# --- magnitude ---


@pytest.mark.parametrize("n_kept", [0, 1, 7, 63, 64])
def test_magnitude_keeps_exactly_the_largest(n_kept: int) -> None:
    D = gaussian(8, 8)
    expected = np.zeros(64, np.float32)
    order = np.argsort(-np.abs(D.numpy().reshape(-1)), kind="stable")[:n_kept]
    expected[order] = halves(D).reshape(-1).numpy()[order]
    assert np.array_equal(keep_largest(D, n_kept).reshape(-1).numpy(), expected)


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    D = torch.tensor([[1.0, -1.0, 2.0, 1.0], [-2.0, 1.0, -1.0, 1.0]])
    assert keep_largest(D, 4).tolist() == [[1, -1, 2, 0], [-2, 0, 0, 0]]
    assert torch.count_nonzero(keep_largest(torch.ones(4, 8), 5)) == 5


def test_no_other_choice_of_so_many_loses_less() -> None:
    D = gaussian(16, 16)
    lost = float((D - keep_largest(D, 64)).norm())
    assert lost < float((D - halves(D) * (keep_random(D, 64, seed=0) != 0)).norm())
    left = np.sort(np.abs(D.numpy()), axis=None)[:-64]
    assert lost == pytest.approx(np.linalg.norm(left), rel=F16_STEP)


# --- activations ---


@pytest.mark.parametrize("n_kept", [0, 40, 59, 40 * 24])
def test_active_is_wandas_rule_in_each_row(n_kept: int, blocks: Blocks) -> None:
    D, norms = gaussian(40, 24), gaussian(1, 24, 1)[0].abs()
    expected, following = np.zeros((40, 24), np.float32), []
    for i, row in enumerate(D.numpy() * norms.numpy()):
        order = sorted(range(24), key=lambda j: -abs(row[j]))
        own = order[: n_kept // 40]
        expected[i, own] = halves(D).numpy()[i, own]
        following += [(abs(row[j]), i, j) for j in order[n_kept // 40 :][:1]]
    for _, i, j in sorted(following, reverse=True)[: n_kept % 40]:
        expected[i, j] = halves(D).numpy()[i, j]
    assert np.array_equal(keep_active(D, norms, n_kept, blocks).numpy(), expected)


def test_active_with_equal_inputs_is_magnitude_in_each_row(blocks: Blocks) -> None:
    D = gaussian(6, 32)
    rows = torch.stack([keep_largest(row[None], 5)[0] for row in D])
    assert torch.equal(keep_active(D, torch.full((32,), 3.0), 30, blocks), rows)


def test_active_loses_least_of_the_outputs(blocks: Blocks) -> None:
    """For inputs without correlation the error of a row is the sum of (|D_ij| ||x_j||)^2 over what is dropped."""
    D, scale = gaussian(32, 64), 4 * torch.rand(64, generator=torch.Generator().manual_seed(3))
    by_inputs = ((D - keep_active(D, scale, 32 * 8, blocks)) * scale).norm()
    plain = ((D - keep_active(D, torch.ones(64), 32 * 8, blocks)) * scale).norm()
    assert float(by_inputs) < 0.95 * float(plain)


def test_active_does_not_depend_on_threads() -> None:
    D = gaussian(3 * BLOCK_ELEMENTS // 64, 64)
    results = []
    for n_threads in (1, 3):
        with open_blocks(n_threads) as b:
            results.append(keep_active(D, torch.ones(64), D.numel() // 8, b))
    assert torch.equal(*results)


# --- bytes ---


def test_bytes_of_each_form() -> None:
    assert pruned_bytes(1000, 4096, 4096, is_seeded=True) == 2000
    assert pruned_bytes(10**7, 4096, 4096) == 2 * 10**7 + 4096 * 4096 // 8  # a bit for each entry
    assert pruned_bytes(1000, 4096, 4096) == 2 * 1000 + 12 * 1000 // 8 + 4 * 4096  # 12 bits for each column
    assert pruned_bytes(3, 1, 5) == 2 * 3 + 1  # 5 bits are a byte, three columns of 3 bits and a pointer are more


@pytest.mark.parametrize("is_seeded", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (3, 40), (4096, 14336), (1, 1)])
def test_as_many_are_kept_as_the_bytes_pay_for(shape: tuple[int, int], is_seeded: bool) -> None:
    n = shape[0] * shape[1]
    for n_bytes in (0, 1, 2, n // 16, n // 8, n // 4 + 3, n, 3 * n):
        k = most_kept(n_bytes, *shape, is_seeded)
        assert 0 <= k <= n
        assert k == 0 or pruned_bytes(k, *shape, is_seeded) <= n_bytes
        # One byte in the rounding up of the columns' bits is not made use of.
        assert k == n or pruned_bytes(k + 1, *shape, is_seeded) > n_bytes - 1


def test_at_one_eighth_fewer_are_kept_than_where_places_are_free() -> None:
    """The paper's 1/8 of the entries; a seed gives as many, stored places half as many and a little more."""
    n = 4096 * 4096
    assert most_kept(n // 4, 4096, 4096, is_seeded=True) == n // 8
    assert 0.070 < most_kept(n // 4, 4096, 4096) / n < 0.072
