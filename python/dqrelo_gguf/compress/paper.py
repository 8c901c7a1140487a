"""The steps of the paper's compression of one weight, arXiv:2604.16940 section 3.3: `D ~ alpha Sign(D) + U V`.

stages.py puts them together. Pure maths on float32 matrices of shape (n_out, n_in); equation numbers are the paper's.
Everything that walks a matrix does so in blocks of rows and in place: beside D itself no second array of its size is made.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.signs import pack_signs


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
        is_positive = rows > 0
        bits[s] = pack_signs(is_positive.cpu().numpy())
        # This is x - alpha for x > 0, x + alpha otherwise.
        rows.add_(torch.where(is_positive, -float(alpha), float(alpha)))

    blocks.run(step, row_slices(n_out, n_in))
    return bits


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
