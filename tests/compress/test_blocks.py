"""blocks.py: sums in one order whatever the number of threads, and no more partial results than threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dqrelo_gguf.compress.blocks import BLOCK_ROWS, Blocks, open_blocks


@pytest.mark.parametrize("n_rows", [1, 1023, 1024, 9 * 1024 + 5])
def test_gram_is_the_same_sum_in_any_number_of_threads(n_rows: int) -> None:
    B = torch.randn(n_rows, 24, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(24, 24, dtype=torch.float64)
    for at in range(0, n_rows, 4 * BLOCK_ROWS):
        expected += B[at : at + 4 * BLOCK_ROWS].T @ B[at : at + 4 * BLOCK_ROWS]
    for n_threads in (1, 2, 5):
        with open_blocks(n_threads) as blocks:
            assert torch.equal(blocks.gram(B), expected)


def test_gram_holds_no_more_products_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's product is as large as the result: those of a vocabulary of 128,256 rows would be 125 of them."""
    run, held = Blocks.run, []

    def counted(self: Blocks, fn: Callable[[slice], torch.Tensor], slices: list[slice]) -> list[torch.Tensor]:
        held.append(len(slices))
        return run(self, fn, slices)

    monkeypatch.setattr(Blocks, "run", counted)
    with open_blocks(3) as blocks:
        blocks.gram(torch.ones(40 * 4 * BLOCK_ROWS, 4))
    assert max(held) == 3
    assert sum(held) == 40
