"""Singular vectors in groups of many, few and fewest bits: Delta-CoMe's mixed precision (arXiv:2406.08903) in sign factors.

Of its mixtures this is the triple one, 8+3+2: the leading 2 singular vectors have 8 bits a number, the next 32 have 3, all
others 2. Each vector is coded by itself (codes.py), as many as there are bytes for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.mixes import CODE_STEP, MAX_CODES_A_SIDE
from dqrelo_gguf.compress.sign_factors import SignFactors, distance, start
from dqrelo_gguf.compress.spectrum import leading

# Bits of a number, and how many of the singular vectors have them; what comes after has the last.
GROUPS = ((8, 2), (3, 32))
LAST_BITS = 2


@dataclass(frozen=True)
class GroupedShape:
    """A weight that is stored with such factors alone: `n_mat` matrices (experts) of n_out rows of n_in elements."""

    n_in: int
    n_out: int
    n_mat: int

    @property
    def n_elements(self) -> int:
        return self.n_in * self.n_out * self.n_mat

    @property
    def step_bytes(self) -> int:
        """Bytes of CODE_STEP codes: their signs on both sides, and two BF16 scales each."""
        return self.n_mat * (self.n_in + self.n_out + 4 * CODE_STEP)

    @property
    def least_steps(self) -> int:
        return 1

    @property
    def max_steps(self) -> int:
        """Those of all singular vectors, or of as many codes as the format has."""
        side = min(self.n_in, self.n_out)
        return min(sum(_bits(side)), MAX_CODES_A_SIDE * side) // CODE_STEP


def _bits(n_vectors: int) -> Iterator[int]:
    """The bits of each singular vector, in order."""
    left = n_vectors
    for bits, most in (*GROUPS, (LAST_BITS, n_vectors)):
        n = min(most, left)
        yield from [bits] * n
        left -= n


def plane_ranks(n_codes: int) -> tuple[int, ...]:
    """How many vectors have a first plane, a second, ...; the last vector has what is left.

    >>> plane_ranks(16 + 3 * 32 + 2 * 4)
    (38, 38, 34, 2, 2, 2, 2, 2)
    """
    left, of_planes = n_codes, [0] * GROUPS[0][0]
    for bits in _bits(n_codes):
        n = min(bits, left)
        for q in range(n):
            of_planes[q] += 1
        left -= n
    return tuple(n for n in of_planes if n > 0)


def compress(D: torch.Tensor, ranks: tuple[int, ...], blocks: Blocks) -> tuple[SignFactors, float]:
    """The truncated SVD of one delta, each singular vector coded by itself.

    Args:
        D: (n_out, n_in) float32. It is not changed.
        ranks: of the planes.
        blocks: the threads to work with.

    Returns:
        The factors, and ||D - D_hat||_F.
    """
    factors = start(leading(D, ranks[0], blocks), ranks, blocks)
    return factors, distance(D, factors, D.new_ones(D.shape[1]), blocks)[0]
