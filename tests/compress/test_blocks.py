"""blocks.py: sums in one order whatever the number of threads."""

from __future__ import annotations

import pytest
import torch

from dqrelo_gguf.compress.blocks import BLOCK_ROWS, GRAM_ROWS, open_blocks


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
