"""Rival ways to compress a delta, each within a given number of bytes: what a reader of D-QReLO would compare it with.

- svd: truncated SVD, factors in F16; every matrix gets bytes in proportion to its elements.
- lora: the same with one rank for all matrices, which is how a LoRA is extracted from a fine-tune.
- delta-come: singular vectors in groups of 8, 3 and 2 bits (Delta-CoMe, arXiv:2406.08903: 2, 32 and the others), in blocks of
  128 with an F16 scale, bytes as in svd. The original rounds with calibration data (GPTQ); here the scales are searched.

Norms and other weights that are no matrices are kept whole in F32 and paid for, as in a delta file.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod

import numpy as np
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.compress.lowrank import LowRank
from dqrelo_gguf.compress.spectrum import leading
from dqrelo_gguf.errors import InputError

METHODS = ("svd", "lora", "delta-come")
GROUPS = ((8, 2), (3, 32), (2, 1 << 30))  # bits of singular vectors and how many of them, the leading ones first
BLOCK = 128  # elements of a singular vector with one scale
N_CANDIDATES = 24  # scales tried for a block

Shape = tuple[int, ...]  # ggml's order


def rank_bytes(method: str, ne: Shape, k: int) -> int:
    """Bytes of the k-th pair of singular vectors."""
    if method != "delta-come":
        return 2 * sum(ne)
    return sum(-(-n * bits_of(k) // 8) + 2 * -(-n // BLOCK) for n in ne)


def bits_of(k: int) -> int:
    """Bits of an element of the k-th singular vector in delta-come."""
    for bits, n in GROUPS:
        if k < n:
            return bits
        k -= n
    raise AssertionError


def choose_ranks(method: str, shapes: Mapping[str, Shape], ratio: Fraction) -> tuple[dict[str, int], int]:
    """The rank of every matrix, and the bytes of everything.

    Args:
        method: one of METHODS.
        shapes: all weights that changed.
        ratio: of the bytes to those of the weights in 16 bits.

    Raises:
        InputError: a matrix with experts, or a ratio that does not pay for the weights kept whole.
    """
    matrices = {name: tuple(n for n in ne if n > 1) for name, ne in shapes.items() if is_matrix(ne)}
    if any(len(ne) > 2 for ne in matrices.values()):
        raise InputError(f"{method}: matrices with experts are not supported")
    n_whole = 4 * sum(prod(ne) for name, ne in shapes.items() if name not in matrices)
    budget = int(ratio * 2 * sum(map(prod, shapes.values()))) - n_whole
    if budget < 0:
        raise InputError(f"{method}: ratio {ratio} does not pay for the vectors")
    ranks, left = (_one_rank if method == "lora" else _shares)(method, matrices, budget)
    return ranks, n_whole + budget - left


def _one_rank(method: str, matrices: Mapping[str, Shape], budget: int) -> tuple[dict[str, int], int]:
    """The same rank everywhere, or the full rank of a smaller matrix; and the bytes that are left."""
    ranks = dict.fromkeys(matrices, 0)
    while True:
        open_ = [name for name, ne in matrices.items() if ranks[name] < min(ne)]
        cost = sum(rank_bytes(method, matrices[name], ranks[name]) for name in open_)
        if not open_ or cost > budget:
            return ranks, budget
        budget -= cost
        for name in open_:
            ranks[name] += 1


def _shares(method: str, matrices: Mapping[str, Shape], budget: int) -> tuple[dict[str, int], int]:
    """Ranks for a share of the bytes in proportion to the elements, what rounding leaves to those that were cut most."""
    n_elements = sum(map(prod, matrices.values()))
    ranks, cut = {}, {}
    left = budget
    for name, ne in matrices.items():
        share, rank = budget * prod(ne) / n_elements, 0
        while rank < min(ne) and (cost := rank_bytes(method, ne, rank)) <= share:
            share, rank, left = share - cost, rank + 1, left - cost
        ranks[name], cut[name] = rank, share
    for name in sorted(cut, key=lambda name: -cut[name]):
        cost = rank_bytes(method, matrices[name], ranks[name])
        if ranks[name] < min(matrices[name]) and cost <= left:
            ranks[name], left = ranks[name] + 1, left - cost
    return ranks, left


def compress(method: str, D: torch.Tensor, rank: int, blocks: Blocks) -> torch.Tensor:
    """D_hat of a rank.

    Args:
        method: one of METHODS.
        D: (n_out, n_in) float32.
        rank: as `choose_ranks` gives it.
        blocks: the threads to work with.

    Returns:
        (n_out, n_in) float32.
    """
    if rank == 0:
        return torch.zeros_like(D)
    factors = leading(D, rank, blocks)
    stored = _few_bits(factors) if method == "delta-come" else LowRank(*(f.half().float() for f in factors))
    return blocks.matmul(stored.U, stored.V)


def _few_bits(factors: LowRank) -> LowRank:
    bits = np.array([bits_of(k) for k in range(factors.V.shape[0])])
    U, V = factors.U.T.clone(), factors.V.clone()  # (rank, n)
    for vectors in (U, V):
        for b in np.unique(bits):
            vectors[bits == b] = round_to_bits(vectors[bits == b], int(b))
    return LowRank(U.T.contiguous(), V)


def round_to_bits(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """Vectors in blocks of `BLOCK` elements: an F16 scale times -2^(bits-1) + 1/2, ..., 2^(bits-1) - 1/2.

    Of each block's scales the one of least squared error is taken.

    Args:
        vectors: (n_vectors, n) float32.
        bits: 1 to 8.
    """
    n_vectors, n = vectors.shape
    padded, is_element = (
        torch.nn.functional.pad(x, (0, -n % BLOCK)).reshape(-1, BLOCK) for x in (vectors, torch.ones_like(vectors))
    )
    top = 2 ** (bits - 1)
    largest = padded.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / (top - 0.5)
    best, least = torch.zeros_like(padded), torch.full_like(largest, torch.inf)
    for share in torch.linspace(0.3, 1.05, N_CANDIDATES):
        scale = (largest * share).half().float().clamp(min=2**-24)
        rounded = ((padded / scale - 0.5).round().clamp(-top, top - 1) + 0.5) * scale
        error = ((rounded - padded) ** 2 * is_element).sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, rounded, best), torch.minimum(error, least)
    return best.reshape(n_vectors, -1)[:, :n]
