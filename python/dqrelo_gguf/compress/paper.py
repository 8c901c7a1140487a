"""The paper's compression of one weight, arXiv:2604.16940 section 3.3: `D ~ alpha Sign(D) + U V`.

Pure maths on float32 matrices of shape (n_out, n_in); equation numbers are the paper's. Everything that walks a matrix
does so in blocks of rows and in place: beside D itself no second array of its size is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.factors import store_factor, stored_values
from dqrelo_gguf.compress.lowrank import SvdMethod, truncated_svd
from dqrelo_gguf.compress.signs import pack_signs
from dqrelo_gguf.errors import NonFiniteError


@dataclass(frozen=True)
class Method:
    """What decides the numbers of a compressed weight, beside its delta and its rank."""

    u_type: str = "F16"
    v_type: str = "F16"
    svd: SvdMethod = "randomised"
    seed: int = 0


@dataclass
class CompressedMatrix:
    """One compressed matrix.

    Args:
        sign_bits: (n_out, n_in // 8) bytes.
        alpha: the scale of the signs.
        u: (n_out, rank) as stored, so (n_out, row bytes) uint8 for quantised types; None at rank 0.
        v: (rank, n_in) as stored.
        error: ||D - D_hat||_F with the stored factors.
    """

    sign_bits: npt.NDArray[np.uint8]
    alpha: np.float32
    u: npt.NDArray[np.generic] | None
    v: npt.NDArray[np.generic] | None
    error: float


def mean_abs(D: torch.Tensor, blocks: Blocks) -> np.float32:
    """alpha = mean(|D|), Eq. 8; summed in float64, so that the size of the matrix does not matter."""
    total = blocks.sum_rows(lambda s: D[s].abs().sum(dtype=torch.float64), *D.shape)
    return np.float32(float(total) / D.numel())


def norm(A: torch.Tensor, blocks: Blocks) -> float:
    """||A||_F."""
    total = blocks.sum_rows(lambda s: A[s].square().sum(dtype=torch.float64), *A.shape)
    return math.sqrt(float(total))


def subtract_signs(D: torch.Tensor, alpha: np.float32, blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Turns D into its residual R = D - alpha Sign(D) in place, Eqs. 6, 7 and 10.

    Sign(x) is +1 for x > 0 and -1 otherwise, so sign(0) = -1.

    Returns:
        The sign bits, (n_out, n_in // 8).
    """
    n_out, n_in = D.shape
    bits = np.empty((n_out, n_in // 8), np.uint8)

    def step(s: slice) -> None:
        rows = D[s]
        bits[s] = pack_signs(rows.numpy())
        # This is x - alpha for x > 0, x + alpha otherwise.
        rows.add_(torch.where(rows > 0, -float(alpha), float(alpha)))

    blocks.run(step, row_slices(n_out, n_in))
    return bits


def _subtract_product(R: torch.Tensor, U: torch.Tensor, V: torch.Tensor, blocks: Blocks) -> None:
    """R -= U V, in place."""
    blocks.run(lambda s: R[s].addmm_(U[s], V, alpha=-1), row_slices(*R.shape))


def compress(D: torch.Tensor, rank: int, method: Method, blocks: Blocks) -> CompressedMatrix:
    """Compresses one delta, Eqs. 6 to 15.

    Args:
        D: (n_out, n_in) float32, n_in a multiple of 8. Destroyed: holds the error D - D_hat afterwards.
        rank: of the low-rank part.
        method: types of the factors, SVD and seed.
        blocks: the threads to work with.

    Raises:
        NonFiniteError: a factor does not fit its type.

    >>> from dqrelo_gguf.compress.blocks import Blocks
    >>> out = compress(torch.full((2, 8), 0.5), 0, Method(), Blocks(1))
    >>> float(out.alpha), out.error
    (0.5, 0.0)
    """
    alpha = mean_abs(D, blocks)
    bits = subtract_signs(D, alpha, blocks)
    if rank == 0:
        return CompressedMatrix(bits, alpha, None, None, norm(D, blocks))
    U, V = truncated_svd(D, rank, blocks, seed=method.seed, method=method.svd)
    u, v = store_factor(U, method.u_type), store_factor(V, method.v_type)
    # The residual is against what the runtime will multiply with.
    U, V = stored_values(u, method.u_type), stored_values(v, method.v_type)
    if not (bool(torch.isfinite(U).all()) and bool(torch.isfinite(V).all())):
        raise NonFiniteError(f"a factor does not fit {method.u_type}/{method.v_type}. Use --factor-type bf16")
    _subtract_product(D, U, V, blocks)
    return CompressedMatrix(bits, alpha, u, v, norm(D, blocks))


def select_by_magnitude(delta: npt.NDArray[np.float32], ratio: float) -> npt.NDArray[np.float32]:
    """The paper's treatment of vectors: the largest `ratio` share of the entries by magnitude, the rest zero.

    Of equal magnitudes the first ones are kept.
    """
    flat = delta.reshape(-1)
    n_keep = int(ratio * flat.size)
    kept = np.argsort(-np.abs(flat), kind="stable")[:n_keep]
    out = np.zeros_like(flat)
    out[kept] = flat[kept]
    return out.reshape(delta.shape)
