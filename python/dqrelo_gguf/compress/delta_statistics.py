"""How large and how complex a delta is: the figures of the paper's Table 1 (arXiv:2604.16940), and some more."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Self

import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.spectrum import singular_values


@dataclass(frozen=True)
class DeltaStatistics:
    """Sums over one matrix or vector, or over many: they can be added. The figures are properties.

    Args:
        n_elements: of D.
        magnitudes: sum of |D|.
        squares: sum of D^2.
        base_squares: sum of W_base^2.
        n_matrices: matrices among them; vectors have no spectrum.
        n_values: their singular values.
        values: sum of those.
        entropies: sum over matrices of the entropy in bits.
        effective_ranks: sum over matrices.
    """

    n_elements: int
    magnitudes: float
    squares: float
    base_squares: float
    n_matrices: int = 0
    n_values: int = 0
    values: float = 0.0
    entropies: float = 0.0
    effective_ranks: float = 0.0

    @classmethod
    def of_vector(cls, D: torch.Tensor, base_squares: float, blocks: Blocks) -> Self:
        """Of a vector's delta: float32, any shape. `base_squares` is the sum of W_base^2."""
        rows = D.reshape(-1, D.shape[-1])
        sums = blocks.sum_rows(
            lambda s: torch.stack([rows[s].abs().sum(dtype=torch.float64), rows[s].square().sum(dtype=torch.float64)]),
            *rows.shape,
        )
        return cls(D.numel(), float(sums[0]), float(sums[1]), base_squares)

    @classmethod
    def of_matrix(cls, D: torch.Tensor, base_squares: float, blocks: Blocks) -> Self:
        """Of a matrix's delta.

        Args:
            D: (n_out, n_in) float32.
            base_squares: the sum of W_base^2.
            blocks: the threads to work with.
        """
        values = singular_values(D, blocks)
        entropy = entropy_bits(values)
        rank = 2**entropy if bool(values.any()) else 0.0
        own = cls.of_vector(D, base_squares, blocks)
        return own + cls(0, 0.0, 0.0, 0.0, 1, len(values), float(values.sum()), entropy, rank)

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def magnitude(self) -> float:
        """mean(|D|), over the elements."""
        return self.magnitudes / self.n_elements

    @property
    def frobenius(self) -> float:
        """||D||_F."""
        return math.sqrt(self.squares)

    @property
    def relative(self) -> float:
        """||D||_F / ||W_base||_F; 0 where the base is zero."""
        return math.sqrt(self.squares / self.base_squares) if self.base_squares > 0 else 0.0

    @property
    def singular_value(self) -> float | None:
        """The mean singular value, over all singular values of all matrices; None without a matrix."""
        return self.values / self.n_values if self.n_values else None

    @property
    def entropy(self) -> float | None:
        """The mean over the matrices of the entropy of a spectrum, in bits; None without a matrix."""
        return self.entropies / self.n_matrices if self.n_matrices else None

    @property
    def effective_rank(self) -> float | None:
        """The mean over the matrices of 2^entropy, from 1 to the number of singular values (Roy and Vetterli, 2007); None without a matrix."""
        return self.effective_ranks / self.n_matrices if self.n_matrices else None


def entropy_bits(values: torch.Tensor) -> float:
    """H = -sum p log2 p of singular values' shares p = value / sum, in bits; 0 where all are zero.

    Args:
        values: (n,) float64, not negative.
    """
    total = values.sum()
    if total <= 0:
        return 0.0
    return float(torch.special.entr(values / total).sum()) / math.log(2)
