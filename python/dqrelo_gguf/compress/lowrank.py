"""Truncated SVD of a residual: `R ~ U V` with the singular values folded into both factors (paper, Eqs. 11-14)."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import torch

from dqrelo_gguf.compress.blocks import Blocks

SvdMethod = Literal["randomised", "exact"]

# Extra columns of the random subspace. Residuals of real deltas have a flat spectrum, where the singular values around
# the rank are close together and a wider subspace converges in fewer passes over the matrix.
OVERSAMPLING = 32
# The iteration stops when a pass lowers the error by less than this part of it. On a flat spectrum (a Gaussian matrix,
# the slowest case) each pass gains about half of what the one before gained, so that about this bound is left.
STOP_GAIN = 1e-3
MAX_PASSES = 24


class LowRank(NamedTuple):
    """U (n_out, rank) and V (rank, n_in), float32, with R ~ U V."""

    U: torch.Tensor
    V: torch.Tensor


def seed_of(name: str) -> int:
    """The seed of a weight's random subspace: the same for the same name, on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def subspace_width(rank: int, n_short: int) -> int:
    """Columns of the random subspace for a matrix whose shorter side is n_short."""
    return min(rank + max(OVERSAMPLING, rank // 4), n_short)


def truncated_svd(
    R: torch.Tensor, rank: int, blocks: Blocks, *, seed: int = 0, method: SvdMethod = "randomised"
) -> LowRank:
    """The best approximation of R of the given rank, or one within 0.5 % of its error.

    Args:
        R: (n_out, n_in), float32. It is not changed.
        rank: at most min(n_out, n_in).
        blocks: the threads to work with.
        seed: of the random subspace.
        method: "randomised" (subspace iteration) or "exact" (LAPACK, in float32).

    Returns:
        U (n_out, rank) and V (rank, n_in); each holds the square root of the singular values.

    >>> from dqrelo_gguf.compress.blocks import Blocks
    >>> U, V = truncated_svd(torch.ones(8, 16), 1, Blocks(1))
    >>> bool(torch.allclose(U @ V, torch.ones(8, 16)))
    True
    """
    n_out, n_in = R.shape
    if rank == 0:
        return LowRank(R.new_zeros((n_out, 0)), R.new_zeros((0, n_in)))
    if method == "exact":
        return _exact(R, rank)
    # The iteration keeps an orthonormal basis of the shorter side, where orthonormalising is cheap.
    if n_in > n_out:
        tall = _subspace_iteration(R.T, rank, blocks, seed)
        return LowRank(tall.V.T.contiguous(), tall.U.T.contiguous())
    return _subspace_iteration(R, rank, blocks, seed)


def _exact(R: torch.Tensor, rank: int) -> LowRank:
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    root = S[:rank].sqrt()
    return LowRank(U[:, :rank] * root, root[:, None] * Vh[:rank])


def _subspace_iteration(A: torch.Tensor, rank: int, blocks: Blocks, seed: int) -> LowRank:
    """Subspace iteration for A (n, m) with n >= m; Halko, Martinsson, Tropp, arXiv:0909.4061, Algorithm 4.4.

    X (m, k) is an orthonormal basis of the right subspace. Each pass computes B = A X and the next basis
    X' = orth(A^T B - shift X). The energy that rank r of B captures is the sum of the r largest eigenvalues of B^T B.

    The shift halves the number of passes on a flat spectrum: directions fade as (s_j^2 - shift) / (s_r^2 - shift)
    instead of (s_j / s_r)^2. It is half the smallest eigenvalue of B^T B, which is never above s_k^2, so that no
    direction outside the subspace (s_j^2 from 0 to s_k^2) becomes larger in magnitude than one inside.
    """
    n, m = A.shape
    k = subspace_width(rank, m)
    # The CPU draws, so that the subspace is the same one on every device.
    drawn = torch.randn((m, k), generator=torch.Generator().manual_seed(seed)).to(A.device)
    X = torch.linalg.qr(drawn)[0]
    energy = float(blocks.sum_rows(lambda s: (A[s].float() ** 2).sum(dtype=torch.float64), n, m))
    error_before, shift = energy, 0.0
    for _ in range(MAX_PASSES):
        B = blocks.matmul(A, X)  # (n, k)
        values, W = torch.linalg.eigh(blocks.gram(B))  # The eigenvalues ascend.
        error = max(energy - float(values[-rank:].sum()), 0.0)
        # `error` is a square: half its relative change is that of the Frobenius norm.
        if k == m or error_before - error <= 2 * STOP_GAIN * error:
            break
        error_before = error
        shift = max(shift, float(values[0]) / 2)
        X = torch.linalg.qr(blocks.matmul(A.T, B).sub_(X, alpha=shift))[0]
    # B = U S W^T, so A ~ (B W) (X W)^T, and column i of B W has the length S_i: the product needs no S,
    # its square root only balances the two factors.
    W = W[:, -rank:].flip(1).to(A.dtype)
    root = values[-rank:].flip(0).clamp(min=0).sqrt().sqrt().to(A.dtype)
    keep = root > 0
    inverse = torch.where(keep, 1 / torch.where(keep, root, torch.ones_like(root)), torch.zeros_like(root))
    return LowRank(blocks.matmul(B, W) * inverse, (blocks.matmul(X, W) * root).T.contiguous())
