"""Deltas to compress, and what a compressed one stores."""

from __future__ import annotations

import numpy as np
import torch

from dqrelo_gguf.compress.best import Compressed
from dqrelo_gguf.compress.codes import decode_columns, decode_rows
from dqrelo_gguf.compress.sign_factors import column_bits, row_bits, scales_of
from dqrelo_gguf.compress.signs import unpack_signs


def gaussian(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((n_out, n_in), generator=torch.Generator().manual_seed(seed))


def low_rank(n_out: int, n_in: int, rank: int) -> torch.Tensor:
    """A strong low-rank part with a decaying spectrum, and some noise: like a real delta."""
    decay = 0.9 ** torch.arange(rank)
    return gaussian(n_out, rank, 1) * decay @ gaussian(rank, n_in, 2) + 0.05 * gaussian(n_out, n_in, 3)


def stored(c: Compressed, shape: tuple[int, int]) -> np.ndarray:
    """D_hat from the packed arrays, by the definition of docs/format.md."""
    out = np.zeros(shape)
    columns = np.ones(shape[1])
    if c.planes is not None:
        if c.planes.column_scales is not None:
            columns = c.planes.column_scales.double().numpy()
        for bits, scales in zip(c.planes.bits, c.planes.scales.double().numpy(), strict=True):
            out += scales[:, None] * unpack_signs(bits, shape[1]) * columns
    if c.factors is not None:
        f = c.factors
        A = decode_columns(column_bits(f.a, f.plane_ranks), scales_of(f.a, f.plane_ranks), f.plane_ranks)
        B = decode_rows(row_bits(f.b, f.plane_ranks), scales_of(f.b, f.plane_ranks), f.plane_ranks)
        out += A.astype(np.float64) @ B * columns
    return out
