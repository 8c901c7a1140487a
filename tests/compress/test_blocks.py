"""blocks.py: sums in one order whatever the number of threads."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import BLOCK_ELEMENTS, BLOCK_ROWS, GRAM_ROWS, Blocks, open_blocks
from dqrelo_gguf.errors import NonFiniteError


@pytest.mark.parametrize(
    ("n_rows", "n_columns"), [(1, 24), (GRAM_ROWS - 1, 24), (2 * GRAM_ROWS + 5, 24), (40, 2 * BLOCK_ROWS + 7)]
)
def test_gram_is_the_same_sum_in_any_number_of_threads(n_rows: int, n_columns: int) -> None:
    B = torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(1))
    sums = []
    for n_threads in (1, 2, 5):
        with open_blocks(n_threads) as blocks:
            sums.append(blocks.gram(B))
    assert torch.allclose(sums[0], sums[0].T, rtol=1e-5, atol=1e-4)
    assert torch.allclose(sums[0], B.double().T @ B.double(), rtol=1e-5, atol=1e-4)
    assert all(torch.equal(sums[0], other) for other in sums[1:])


def test_matrices_of_a_stack_have_a_thread_each_where_there_are_enough() -> None:
    stack = np.random.default_rng(0).standard_normal((4, 6, 5), dtype=np.float32)
    for n_threads, n_given in ((1, 1), (2, 1), (4, 1), (5, 5)):
        with open_blocks(n_threads) as blocks:
            found = blocks.each(lambda e, matrix, threads: (e, matrix.sum().item(), threads.n_threads), stack)
        assert found == [(e, torch.from_numpy(stack[e]).sum().item(), n_given) for e in range(4)]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_error_of_a_matrix_is_raised_and_the_threads_go_on(n_threads: int) -> None:
    def work(e: int, matrix: torch.Tensor, _: Blocks) -> int:
        if e == 1:
            raise NonFiniteError("of matrix 1")
        return len(matrix)

    with open_blocks(n_threads) as blocks:
        with pytest.raises(NonFiniteError, match="of matrix 1"):
            blocks.each(work, np.zeros((5, 3, 2), np.float32))
        assert blocks.each(lambda e, matrix, _: e + len(matrix), np.zeros((3, 4, 2), np.float32)) == [4, 5, 6]


def test_parts_of_a_sum_do_not_stay_where_they_were_made() -> None:
    """Small results that do hold the memory around them."""
    n_rows, n_cols = 20 * BLOCK_ELEMENTS // 64 + 5, 64
    A = torch.randn(n_rows, n_cols, generator=torch.Generator().manual_seed(2))
    found = []
    for n_threads in (1, 2, 5):
        made: list[weakref.ref[torch.Tensor]] = []
        n_there: list[int] = []

        def part(
            rows: slice, made: list[weakref.ref[torch.Tensor]] = made, n_there: list[int] = n_there
        ) -> torch.Tensor:
            n_there.append(sum(ref() is not None for ref in [*made]))
            sums = A[rows].square().sum(dim=0, dtype=torch.float64)
            made.append(weakref.ref(sums))
            return sums

        with open_blocks(n_threads) as blocks:
            found.append(blocks.sum_rows(part, n_rows, n_cols))
        assert len(made) == 21
        assert max(n_there) <= n_threads
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.allclose(found[0], A.double().square().sum(dim=0))
