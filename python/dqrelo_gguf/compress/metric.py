"""How errors of a weight count where it is known what the weight multiplies.

A row of the weight multiplies activations x. An error E of the weight moves its output by E x, in the mean square by
tr(E H E^T) with the second moments H = mean of x x^T. With a root H = L L^T that is ||E L||_F^2, so everything that
minimises a plain norm serves for this one too, once its matrix is multiplied with L.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch

from dqrelo_gguf.compress.blocks import Blocks

# The share of plain squared errors: text of a few thousand tokens does not show all that a weight may multiply.
DAMPING = 0.2


class Metric:
    """The norm ||E L||_F of a weight's errors. The mean of H's diagonal is 1, so white errors count as in the plain norm.

    Args:
        moments: (n_in, n_in) float32, the mean of x x^T in any unit.
        damping: the share of the identity that is added, against the mean of the diagonal.

    Attributes:
        H: (n_in, n_in) float32, normalised and damped.
        root: its Cholesky factor L, lower.
        sequence: the columns in the sequence in which error feedback takes them, those that count most first.
    """

    def __init__(self, moments: torch.Tensor, damping: float = DAMPING) -> None:
        mean = float(moments.diagonal().mean())
        self.H = moments / mean if mean > 0 else torch.zeros_like(moments)
        self.H.diagonal().add_(damping if mean > 0 else 1.0)
        self.H /= float(self.H.diagonal().mean())
        self.root = torch.linalg.cholesky(self.H)
        self.sequence = torch.argsort(self.H.diagonal(), descending=True, stable=True)

    @cached_property
    def feedback(self) -> torch.Tensor:
        """(n_in, n_in) float32, upper: row j says how an error in column j of the sequence is made up for in those after it.

        The Cholesky factor of H^-1 (GPTQ, arXiv:2210.17323), each row by its diagonal.
        """
        H = self.H[self.sequence][:, self.sequence]
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
        shares: torch.Tensor = factor / factor.diagonal()[:, None]
        return shares

    def weigh(self, X: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """X L for X (k, n_in)."""
        return blocks.matmul(X, self.root)

    def unweigh(self, X: torch.Tensor) -> torch.Tensor:
        """X L^-1 for X (k, n_in)."""
        out: torch.Tensor = torch.linalg.solve_triangular(self.root, X, upper=False, left=False)
        return out

    def norm(self, E: torch.Tensor, blocks: Blocks) -> float:
        """||E L||_F for E (k, n_in)."""

        def part(s: slice) -> torch.Tensor:
            weighed: torch.Tensor = E[s] @ self.root
            return weighed.square().sum(dtype=torch.float64)

        return math.sqrt(float(blocks.sum_rows(part, *E.shape)))
