"""lowrank: the randomised truncated SVD against the exact one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.lowrank import seed_of, truncated_svd
from dqrelo_gguf.compress.paper import mean_abs, subtract_signs
from tests.support.models import EXAMPLES

# The promise: the error of the truncation is at most this much above the smallest possible one.
MAX_EXCESS = 0.005


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def smallest_error(R: torch.Tensor, rank: int) -> float:
    """Eckart-Young: the norm of the singular values that are cut off."""
    return float(torch.linalg.svdvals(R.double())[rank:].norm())


def error_of(R: torch.Tensor, U: torch.Tensor, V: torch.Tensor) -> float:
    return float((R.double() - U.double() @ V.double()).norm())


def residual(D: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    R = D.clone()
    subtract_signs(R, mean_abs(R, blocks), blocks)
    return R


def noise(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((n_out, n_in), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_out", "n_in"), [(512, 512), (256, 1024), (1024, 200), (64, 96)])
@pytest.mark.parametrize("part", [1 / 16, 1 / 4])
def test_error_on_a_flat_spectrum(n_out: int, n_in: int, part: float, blocks: Blocks) -> None:
    R = residual(noise(n_out, n_in), blocks)
    rank = int(part * n_out * n_in / (n_out + n_in))
    U, V = truncated_svd(R, rank, blocks)
    assert U.shape == (n_out, rank)
    assert V.shape == (rank, n_in)
    assert error_of(R, U, V) <= (1 + MAX_EXCESS) * smallest_error(R, rank)


def test_error_on_real_deltas(blocks: Blocks) -> None:
    base = load_file(EXAMPLES / "base" / "model.safetensors")
    for tuned_name in ("ft-json", "ft-words"):
        tuned = load_file(EXAMPLES / tuned_name / "model.safetensors")
        for name in base:
            if base[name].ndim != 2:
                continue
            R = residual(tuned[name].float() - base[name].float(), blocks)
            rank = R.numel() // 16 // sum(R.shape)
            U, V = truncated_svd(R, rank, blocks, seed=seed_of(name))
            assert error_of(R, U, V) <= (1 + MAX_EXCESS) * smallest_error(R, rank), name


def test_finds_an_exact_low_rank(blocks: Blocks) -> None:
    R = noise(300, 8, 1) @ noise(8, 200, 2)
    U, V = truncated_svd(R, 8, blocks)
    assert error_of(R, U, V) <= 1e-5 * float(R.norm())


@pytest.mark.parametrize("rank", [1, 16, 40])
def test_fewer_directions_than_ranks(rank: int, blocks: Blocks) -> None:
    R = torch.zeros(40, 64)
    R[3, 5], R[20, 7] = 2.0, -0.5
    U, V = truncated_svd(R, rank, blocks)
    assert torch.isfinite(U).all()
    assert torch.isfinite(V).all()
    assert error_of(R, U, V) <= smallest_error(R, rank) + 1e-5


def test_zero_matrix(blocks: Blocks) -> None:
    U, V = truncated_svd(torch.zeros(16, 24), 4, blocks)
    assert not (U @ V).any()


def test_rank_zero(blocks: Blocks) -> None:
    U, V = truncated_svd(noise(16, 24), 0, blocks)
    assert U.shape == (16, 0)
    assert V.shape == (0, 24)


def test_factors_share_the_singular_values(blocks: Blocks) -> None:
    U, V = truncated_svd(noise(80, 120), 5, blocks)
    assert torch.allclose(U.norm(dim=0), V.norm(dim=1), rtol=1e-4)


def test_exact_is_the_optimum(blocks: Blocks) -> None:
    R = noise(96, 64)
    U, V = truncated_svd(R, 10, blocks, method="exact")
    assert error_of(R, U, V) == pytest.approx(smallest_error(R, 10), rel=1e-5)


@pytest.mark.parametrize(("n_out", "n_in"), [(700, 300), (300, 1100)])
def test_same_bits_with_any_number_of_threads(n_out: int, n_in: int) -> None:
    R = noise(n_out, n_in)
    results = []
    for n_threads in (1, 2, 3):
        with open_blocks(n_threads) as b:
            results.append(truncated_svd(R, 20, b, seed=7))
    for other in results[1:]:
        assert torch.equal(other.U, results[0].U)
        assert torch.equal(other.V, results[0].V)


def test_input_is_not_changed(blocks: Blocks) -> None:
    R = noise(64, 48)
    before = R.clone()
    truncated_svd(R, 4, blocks)
    assert torch.equal(R, before)


def test_seed_depends_on_the_name_alone() -> None:
    assert seed_of("blk.0.attn_q.weight") == seed_of("blk.0.attn_q.weight")
    assert seed_of("blk.0.attn_q.weight") != seed_of("blk.1.attn_q.weight")
    assert 0 <= seed_of("x") < 2**63
