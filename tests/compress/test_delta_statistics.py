"""delta_statistics: the figures of Table 1 against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.delta_statistics import DeltaStatistics
from dqrelo_gguf.compress.spectrum import singular_values


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def test_a_matrix_by_hand(blocks: Blocks) -> None:
    """Singular values 3 and 1: shares of 3/4 and 1/4."""
    found = DeltaStatistics.of_matrix(torch.tensor([[3.0, 0.0], [0.0, -1.0], [0.0, 0.0]]), 40.0, blocks)
    assert found.magnitude == pytest.approx(4 / 6)
    assert found.singular_value == pytest.approx(2.0)
    assert found.entropy == pytest.approx(2 - 0.75 * math.log2(3))  # 0.8113 bits
    assert found.effective_rank == pytest.approx(4 / 3**0.75)  # 1.7548
    assert found.frobenius == pytest.approx(math.sqrt(10))
    assert found.relative == pytest.approx(0.5)


@pytest.mark.parametrize(("n_out", "n_in"), [(64, 64), (8, 64), (64, 8)])
def test_equal_singular_values_have_the_whole_rank(n_out: int, n_in: int, blocks: Blocks) -> None:
    n = min(n_out, n_in)
    found = DeltaStatistics.of_matrix(2 * torch.eye(n_out, n_in), 1.0, blocks)
    assert found.entropy == pytest.approx(math.log2(n))
    assert found.effective_rank == pytest.approx(n)


def test_a_vector_has_no_spectrum(blocks: Blocks) -> None:
    found = DeltaStatistics.of_vector(torch.tensor([3.0, -4.0]), 100.0, blocks)
    assert (found.magnitude, found.frobenius, found.relative) == (3.5, 5.0, 0.5)
    assert (found.singular_value, found.entropy, found.effective_rank) == (None, None, None)


def test_sums_count_elements_values_and_matrices(blocks: Blocks) -> None:
    """Magnitude is over elements, the singular value over singular values, entropy and effective rank over matrices."""
    small = DeltaStatistics.of_matrix(torch.eye(2), 8.0, blocks)
    large = DeltaStatistics.of_matrix(3 * torch.eye(4), 64.0, blocks)
    vector = DeltaStatistics.of_vector(torch.tensor([1.0, 1.0]), 1.0, blocks)
    found = sum([large, vector], small)
    assert found.n_elements == 22
    assert found.magnitude == pytest.approx((2 + 12 + 2) / 22)
    assert found.singular_value == pytest.approx((2 * 1 + 4 * 3) / 6)
    assert found.entropy == pytest.approx((1 + 2) / 2)
    assert found.effective_rank == pytest.approx((2 + 4) / 2)
    assert found.frobenius == pytest.approx(math.sqrt(2 + 36 + 2))
    assert found.relative == pytest.approx(math.sqrt(40 / 73))


def test_a_delta_of_zero_has_nothing(blocks: Blocks) -> None:
    found = DeltaStatistics.of_matrix(torch.zeros(4, 8), 0.0, blocks)
    assert (found.magnitude, found.singular_value, found.entropy, found.effective_rank) == (0, 0, 0, 0)
    assert found.relative == 0


def test_few_directions_leave_no_noise(blocks: Blocks) -> None:
    """Products in float32 would leave 1e-4 of the largest value in each of the others, and hundreds of them weigh."""
    g = torch.Generator().manual_seed(0)
    D = torch.outer(torch.randn(600, generator=g), torch.randn(500, generator=g)).float()
    found = singular_values(D, blocks)
    assert found.shape == (500,)
    assert float(found[0]) == pytest.approx(float(D.double().norm()), rel=1e-6)
    assert float(found[1:].sum() / found[0]) < 1e-4
    assert DeltaStatistics.of_matrix(D, 1.0, blocks).effective_rank == pytest.approx(1, abs=0.01)


def test_threads_change_no_bit(blocks: Blocks) -> None:
    D = torch.randn((700, 600), generator=torch.Generator().manual_seed(3))
    with open_blocks(1) as one:
        assert torch.equal(singular_values(D, blocks), singular_values(D, one))
