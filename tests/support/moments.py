"""Rows that a weight may multiply, and their second moments."""

from __future__ import annotations

import torch


def inputs(n: int, n_rows: int, seed: int = 0) -> torch.Tensor:
    """Rows that lie mostly in a few directions, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    strengths = 0.8 ** torch.arange(n)
    mixed = torch.linalg.qr(torch.randn((n, n), generator=generator)).Q
    return torch.randn((n_rows, n), generator=generator) * strengths @ mixed


def moments(X: torch.Tensor) -> torch.Tensor:
    H = X.T @ X / len(X)
    return (H + H.T) / 2
