"""groups.py: which singular vectors have how many bits, and what coding them loses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dqrelo_gguf.compress.best import Compressed
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.groups import GroupedShape, compress, plane_ranks
from dqrelo_gguf.compress.mixes import PAIR_LOSS
from dqrelo_gguf.file.layout import WeightSpec
from tests.support.compressed import gaussian, low_rank, stored


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


@pytest.mark.parametrize("n_codes", [8, 16, 24, 112, 120, 200, 1000])
def test_two_vectors_of_8_bits_32_of_3_and_the_rest_of_2(n_codes: int) -> None:
    ranks = plane_ranks(n_codes)
    bits = [sum(k < r for r in ranks) for k in range(ranks[0])]
    assert sum(ranks) == n_codes
    assert list(ranks) == sorted(ranks, reverse=True)
    wanted = [8, 8, *[3] * 32, *[2] * 1000][: len(bits)]
    assert bits[:-1] == wanted[:-1]
    assert bits[-1] <= wanted[-1]


@pytest.mark.parametrize("shape", [(64, 64), (1024, 64), (1024, 3), (1024, 2), (8, 1024), (4096, 14336)])
def test_the_format_holds_as_many_as_a_matrix_can_have(shape: tuple[int, int]) -> None:
    grouped = GroupedShape(*shape, 1)
    for steps in (grouped.least_steps, grouped.max_steps):
        spec = WeightSpec("w", shape, n_planes=0, plane_ranks=plane_ranks(8 * steps))
        spec.check()
        assert spec.n_bytes == steps * grouped.step_bytes


def test_the_error_is_that_of_what_is_stored(blocks: Blocks) -> None:
    D = low_rank(96, 160, 40)
    factors, error = compress(D, plane_ranks(120), blocks)
    D_hat = stored(Compressed(None, factors, error), (96, 160))
    assert error == pytest.approx(np.linalg.norm(D.double().numpy() - D_hat), rel=1e-5)


def test_the_error_is_what_the_bits_of_each_vector_lose(blocks: Blocks) -> None:
    """Vectors of b bits lose a known share of their energy, and those left out all of it."""
    D = gaussian(512, 384)
    ranks = plane_ranks(400)
    energies = np.linalg.svd(D.double().numpy(), compute_uv=False) ** 2
    bits = [sum(k < r for r in ranks) for k in range(len(energies))]
    expected = sum(PAIR_LOSS[b] * e for b, e in zip(bits, energies, strict=True))
    assert compress(D, ranks, blocks)[1] ** 2 == pytest.approx(expected, rel=0.02)
