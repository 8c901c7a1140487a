"""compress of the paper's stages: its equations against themselves, written plainly in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.blocks import BLOCK_ELEMENTS, Blocks, open_blocks
from dqrelo_gguf.compress.factors import FACTOR_TYPES, stored_values
from dqrelo_gguf.compress.paper import mean_abs, norm, select_by_magnitude
from dqrelo_gguf.compress.signs import unpack_signs
from dqrelo_gguf.compress.stages import CompressedMatrix, LowRankOptions, compress
from dqrelo_gguf.errors import NonFiniteError

# The float32 rounding of an element, through a sum of a few terms.
REL = 1e-5
PAPER = ("sign", "svd")


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def delta(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    return 0.01 * torch.randn((n_out, n_in), generator=torch.Generator().manual_seed(seed))


def reconstruct(c: CompressedMatrix, n_in: int, options: LowRankOptions) -> np.ndarray:
    """Eq. 15 from what is stored."""
    d_hat = float(c.planes[0][1]) * unpack_signs(c.planes[0][0], n_in).astype(np.float64)
    if c.u is not None and c.v is not None:
        U, V = stored_values(c.u, options.u_type).double(), stored_values(c.v, options.v_type).double()
        d_hat = d_hat + (U @ V).numpy()
    return d_hat


@pytest.mark.parametrize(("n_out", "n_in", "rank"), [(64, 64, 0), (64, 96, 4), (200, 40, 7), (1, 8, 0), (1100, 256, 3)])
def test_equations(n_out: int, n_in: int, rank: int, blocks: Blocks) -> None:
    D = delta(n_out, n_in)
    D64 = D.double().numpy()
    alpha = np.abs(D64).mean()  # Eq. 8
    sign = np.where(D64 > 0, 1.0, -1.0)  # Eq. 7
    R = D64 - alpha * sign  # Eq. 10
    U, S, Vt = np.linalg.svd(R, full_matrices=False)  # Eqs. 11 to 14
    smallest = np.linalg.norm(S[rank:])

    c = compress(D.clone(), PAPER, rank, LowRankOptions(u_type="F32", v_type="F32", svd="exact"), blocks)

    assert float(c.planes[0][1]) == pytest.approx(alpha, rel=REL)
    assert np.array_equal(unpack_signs(c.planes[0][0], n_in), sign)
    assert c.error == pytest.approx(smallest, rel=1e-4)
    best = alpha * sign + (U[:, :rank] * S[:rank]) @ Vt[:rank]  # Eq. 15
    d_hat = reconstruct(c, n_in, LowRankOptions(u_type="F32", v_type="F32"))
    assert np.linalg.norm(d_hat - best) <= 1e-3 * np.linalg.norm(D64)


def test_alpha_minimises_the_error_of_the_signs(blocks: Blocks) -> None:
    D = delta(32, 32)
    sign = torch.where(D > 0, 1.0, -1.0)
    alpha = float(mean_abs(D, blocks))

    def error(a: float) -> float:
        return float((D.double() - a * sign.double()).norm())

    assert error(alpha) < error(1.001 * alpha)
    assert error(alpha) < error(0.999 * alpha)


def test_sign_of_zero_is_minus(blocks: Blocks) -> None:
    D = torch.tensor([[0.0, -0.0, 1.0, -1.0, 0.0, 2.0, 0.0, 0.0]])
    c = compress(D, PAPER, 0, LowRankOptions(), blocks)
    assert unpack_signs(c.planes[0][0], 8).tolist() == [[-1, -1, 1, -1, -1, 1, -1, -1]]


def test_zero_delta(blocks: Blocks) -> None:
    c = compress(torch.zeros(16, 16), PAPER, 2, LowRankOptions(), blocks)
    assert float(c.planes[0][1]) == 0
    assert c.error == 0


@pytest.mark.parametrize("name", FACTOR_TYPES.values())
def test_error_counts_the_stored_factors(name: str, blocks: Blocks) -> None:
    D = delta(128, 64)
    options = LowRankOptions(u_type=name, v_type=name)
    c = compress(D.clone(), PAPER, 32, options, blocks)
    measured = np.linalg.norm(D.double().numpy() - reconstruct(c, 64, options))
    assert c.error == pytest.approx(measured, rel=1e-4)


def test_more_rank_means_less_error(blocks: Blocks) -> None:
    errors = [compress(delta(96, 96), PAPER, rank, LowRankOptions(), blocks).error for rank in (0, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)


def test_factor_that_overflows_is_refused(blocks: Blocks) -> None:
    D = torch.zeros(64, 64)
    D[0, 0] = 1e12
    with pytest.raises(NonFiniteError, match="--factor-type bf16"):
        compress(D.clone(), PAPER, 1, LowRankOptions(), blocks)
    compress(D.clone(), PAPER, 1, LowRankOptions(u_type="BF16", v_type="BF16"), blocks)


def test_sums_do_not_depend_on_threads() -> None:
    D = delta(3 * BLOCK_ELEMENTS // 64, 64)
    results = []
    for n_threads in (1, 2, 4):
        with open_blocks(n_threads) as b:
            results.append((mean_abs(D, b), norm(D, b)))
    assert results[0] == results[1] == results[2]


def test_select_by_magnitude() -> None:
    values = np.array([0.1, -3.0, 2.0, 0.0, -2.0, 0.5, 0.2, 0.3], np.float32)
    assert select_by_magnitude(values, 1 / 4).tolist() == [0, -3, 2, 0, 0, 0, 0, 0]
    assert not select_by_magnitude(values, 0.01).any()
    assert select_by_magnitude(values.reshape(2, 4), 1.0).tolist() == values.reshape(2, 4).tolist()
