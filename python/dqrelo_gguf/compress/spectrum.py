"""The singular values of a matrix, plain or under a metric, from the eigenvalues of its smaller Gram matrix in float64."""

from __future__ import annotations

import torch

from dqrelo_gguf.compress.blocks import BLOCK_ROWS, Blocks, slices_of
from dqrelo_gguf.compress.lowrank import LowRank, subspace_width, truncated_svd
from dqrelo_gguf.compress.metric import Metric

# What the usual eight passes of a subspace iteration take, in multiply-adds of a product on all cores: for each element of the matrix and
# column of the subspace, and for the square of its columns times the matrix's smaller side (orthonormalising, on one core). Beside it all
# eigenvectors of a Gram matrix, for the cube of its side. Measured with 4096 columns and two cores.
PASS_OPERATIONS = 32
BASIS_OPERATIONS = 240
EIGH_OPERATIONS = 24


def _gram(D: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """D D^T or D^T D, whichever is smaller; (n, n) float64 with n the smaller side."""
    return blocks.gram(D if D.shape[1] <= D.shape[0] else D.T)


def energies(D: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """The squares of all singular values, descending; float64 (min(n_out, n_in),).

    Args:
        D: (n_out, n_in) float32.
        blocks: the threads to work with.
    """
    ascending: torch.Tensor = torch.linalg.eigvalsh(_gram(D, blocks).float())
    return ascending.flip(0).clamp(min=0).double()


def singular_values(D: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """All singular values, descending; float64 (min(n_out, n_in),).

    The products are float64 too, so that what is left of values that are zero is 1e-8 of the largest one; it takes twice the
    time of `energies`.

    Args:
        D: (n_out, n_in) float32.
        blocks: the threads to work with.
    """
    B = D if D.shape[1] <= D.shape[0] else D.T
    n = B.shape[1]
    total = D.new_zeros((n, n), dtype=torch.float64)
    for rows in slices_of(B.shape[0], 4 * BLOCK_ROWS):
        X = B[rows].double()

        def add(own: slice, X: torch.Tensor = X) -> None:
            total[own].addmm_(X[:, own].T, X)

        blocks.run(add, slices_of(n, BLOCK_ROWS))
    ascending: torch.Tensor = torch.linalg.eigvalsh(total)
    return ascending.flip(0).clamp(min=0).sqrt()


def leading(D: torch.Tensor, rank: int, blocks: Blocks) -> LowRank:
    """The truncated SVD of a rank, with the square root of each singular value in both factors (paper, Eqs. 11-14).

    The products are float32, so energies under 1e-7 of the largest one are noise.

    Args:
        D: (n_out, n_in) float32.
        rank: 1 to min(n_out, n_in).
        blocks: the threads to work with.
    """
    n_out, n_in = D.shape
    if _is_iteration_cheaper(n_out, n_in, rank):
        return truncated_svd(D, rank, blocks)
    values, vectors = torch.linalg.eigh(_gram(D, blocks).float())
    root = values[-rank:].flip(0).clamp(min=0).sqrt().sqrt()
    basis = vectors[:, -rank:].flip(1).contiguous()  # (n, rank)
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    if D.shape[1] <= D.shape[0]:  # D ~ (D basis) basis^T
        return LowRank(blocks.matmul(D, basis).mul_(inverse), (basis * root).T.contiguous())
    return LowRank(basis * root, blocks.matmul(D.T, basis).mul_(inverse).T.contiguous())


def _is_iteration_cheaper(n_out: int, n_in: int, rank: int) -> bool:
    """Whether a few passes of a subspace over the matrix cost less than the Gram matrix and all of its eigenvectors."""
    n_short, n_long = sorted((n_out, n_in))
    k = subspace_width(rank, n_short)
    passes = PASS_OPERATIONS * n_long * n_short * k + BASIS_OPERATIONS * n_short * k**2
    return passes < n_long * n_short**2 + EIGH_OPERATIONS * n_short**3


def leading_under(D: torch.Tensor, rank: int, metric: Metric, blocks: Blocks) -> LowRank:
    """The factors of a rank that are nearest to D under a metric: the truncated SVD of D L, and V L^-1 for its V.

    Args:
        D: (n_out, n_in) float32.
        rank: 1 to min(n_out, n_in).
        metric: of D's errors.
        blocks: the threads to work with.
    """
    found = leading(metric.weigh(D, blocks), rank, blocks)
    return LowRank(found.U, metric.unweigh(found.V))
