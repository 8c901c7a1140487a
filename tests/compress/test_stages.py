"""compress in stages: every order of the stages against a literal version in float64, and what is known of each in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.factors import stored_values
from dqrelo_gguf.compress.signs import unpack_signs
from dqrelo_gguf.compress.stages import CompressedMatrix, LowRankOptions, compress
from dqrelo_gguf.convert.methods import METHODS
from tests.support.compressed import gaussian, low_rank

EXACT = LowRankOptions("F32", "F32", "exact")
RANK = 5
ORDERS = {name: method.stages for name, method in METHODS.items() if method.stages}


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def literal(D: np.ndarray, stages: Sequence[str], rank: int) -> np.ndarray:
    """D_hat by the formulas."""
    R, D_hat = D.copy(), np.zeros_like(D)
    for stage in stages:
        if stage == "sign":
            part = np.abs(R).mean() * np.where(R > 0, 1.0, -1.0)
        else:
            U, S, Vt = np.linalg.svd(R, full_matrices=False)
            part = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        R, D_hat = R - part, D_hat + part
    return D_hat


def stored(c: CompressedMatrix, n_in: int) -> np.ndarray:
    """D_hat from what is stored in F32."""
    out = sum(float(alpha) * unpack_signs(bits, n_in).astype(np.float64) for bits, alpha in c.planes)
    if c.u is not None and c.v is not None:
        out = out + (stored_values(c.u, "F32").double() @ stored_values(c.v, "F32").double()).numpy()
    return np.asarray(out)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (40, 8)])
def test_stages_are_the_formulas(name: str, shape: tuple[int, int], blocks: Blocks) -> None:
    D = low_rank(*shape, 8)
    expected = literal(D.double().numpy(), ORDERS[name], RANK)
    c = compress(D.clone(), ORDERS[name], RANK, EXACT, blocks)
    D_hat = stored(c, shape[1])
    # A residual next to zero may have the other sign in float32: then D_hat differs there, and its error hardly.
    assert np.linalg.norm(D_hat - expected) <= 2e-2 * np.linalg.norm(expected)
    error = np.linalg.norm(D.double().numpy() - expected)
    assert c.error == pytest.approx(error, rel=1e-4)
    assert np.linalg.norm(D.double().numpy() - D_hat) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("svd", ["exact", "randomised"])
def test_svd_is_the_best_of_its_rank(svd: str, blocks: Blocks) -> None:
    """Eckart and Young: the error is the root of the energy of the singular values left out, and no other matrix of the rank has less."""
    D = low_rank(80, 64, 12)
    S = np.linalg.svd(D.double().numpy(), compute_uv=False)
    c = compress(D.clone(), ("svd",), RANK, LowRankOptions("F32", "F32", svd), blocks)  # type: ignore[arg-type]
    least = np.linalg.norm(S[RANK:])
    assert least * (1 - 1e-5) <= c.error <= least * 1.005
    assert np.linalg.matrix_rank(stored(c, 64), tol=1e-4 * S[0]) == RANK


def test_the_scale_of_one_plane_keeps_two_over_pi_of_a_gaussian(blocks: Blocks) -> None:
    """The error of signs alone is sqrt(1 - (E|x|)^2 / E x^2), for a Gaussian sqrt(1 - 2 / pi)."""
    D = gaussian(512, 512)
    share = compress(D.clone(), ("sign",), 0, EXACT, blocks).error / float(D.norm())
    assert share == pytest.approx((1 - 2 / np.pi) ** 0.5, abs=5e-3)


def test_the_second_plane_is_the_sign_of_what_the_first_leaves(blocks: Blocks) -> None:
    D = gaussian(64, 64)
    (first, alpha), (second, beta) = compress(D.clone(), ("sign", "sign"), 0, EXACT, blocks).planes
    R = D.double().numpy() - float(alpha) * unpack_signs(first, 64)
    assert float(beta) == pytest.approx(np.abs(R).mean(), rel=1e-5)
    assert np.array_equal(unpack_signs(second, 64), np.where(R > 0, 1, -1))


def test_svd_first_leaves_its_signs_the_smaller_residual(blocks: Blocks) -> None:
    """On a delta of low rank, the sign plane after the SVD has the scale of the noise; before it, that of the whole delta."""
    D = low_rank(128, 128, RANK)
    before = compress(D.clone(), ("sign", "svd"), RANK, EXACT, blocks)
    after = compress(D.clone(), ("svd", "sign"), RANK, EXACT, blocks)
    assert float(after.planes[0][1]) == pytest.approx(0.05 * (2 / np.pi) ** 0.5, rel=0.1)
    assert float(before.planes[0][1]) > 5 * float(after.planes[0][1])
    assert after.error < before.error
