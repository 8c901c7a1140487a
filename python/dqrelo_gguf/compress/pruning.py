"""Pruning a delta: some entries are kept, the others are zero. The methods differ in which.

Pure maths on float32 matrices of shape (n_out, n_in). What is kept is rounded to F16, the 16 bits that are charged for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices

VALUE_BYTES = 2
POINTER_BYTES = 4  # where a row's list of columns begins


def keep_random(D: torch.Tensor, n_kept: int, seed: int) -> torch.Tensor:
    """DARE, arXiv:2311.03099: so many entries drawn at random, each times n / n_kept, so that the mean over all draws is D.

    The original drops each entry by itself with a probability. Here as many are kept as there are bytes for, which every entry is
    with the same probability too.

    Args:
        D: (n_out, n_in).
        n_kept: at most D has.
        seed: of the draw.
    """
    if n_kept == 0:
        return torch.zeros_like(D)
    draws = torch.rand(D.shape, generator=torch.Generator().manual_seed(seed))
    return _kept(D * (D.numel() / n_kept), largest(draws.numpy(), n_kept))


def keep_largest(D: torch.Tensor, n_kept: int) -> torch.Tensor:
    """So many entries of the largest magnitude of the matrix; of equal ones the first.

    Args:
        D: (n_out, n_in).
        n_kept: at most D has.
    """
    return _kept(D, largest(D.abs().cpu().numpy(), n_kept))


def keep_active(D: torch.Tensor, norms: torch.Tensor, n_kept: int, blocks: Blocks) -> torch.Tensor:
    """Wanda, arXiv:2306.11695, of a delta: in each row the entries of the largest |D_ij| ||x_j||.

    Args:
        D: (n_out, n_in).
        norms: ||x_j|| of the inputs, in any unit; (n_in,).
        n_kept: of the matrix, shared out evenly over the rows; what is left over goes to those whose next entry is largest.
        blocks: the threads to work with.
    """
    a_row, n_more = divmod(n_kept, D.shape[0])
    mask = np.zeros(D.shape, bool)
    following = np.zeros(D.shape[0], np.float32)  # the score of each row's next entry
    columns = np.zeros(D.shape[0], np.intp)  # and its column

    def step(s: slice) -> None:
        scores = (D[s].abs() * norms).cpu().numpy()
        by_score = np.argsort(-scores, axis=1, kind="stable")
        np.put_along_axis(mask[s], by_score[:, :a_row], True, axis=1)
        if n_more > 0:
            columns[s] = by_score[:, a_row]
            following[s] = np.take_along_axis(scores, by_score[:, a_row : a_row + 1], axis=1)[:, 0]

    blocks.run(step, row_slices(*D.shape))
    rows = np.flatnonzero(largest(following, n_more))
    mask[rows, columns[rows]] = True
    return _kept(D, mask)


def largest(scores: npt.NDArray[np.float32], n_kept: int) -> npt.NDArray[np.bool_]:
    """True for the n_kept largest scores; of equal ones the first."""
    if n_kept == 0:
        return np.zeros(scores.shape, bool)
    bound = np.partition(scores, scores.size - n_kept, axis=None)[scores.size - n_kept]
    mask: npt.NDArray[np.bool_] = scores > bound
    at_bound = np.flatnonzero(scores == bound)[: n_kept - int(np.count_nonzero(mask))]
    mask.reshape(-1)[at_bound] = True
    return mask


def _kept(D: torch.Tensor, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
    return torch.where(torch.from_numpy(mask).to(D.device), D.half().float(), 0.0)


def pruned_bytes(n_kept: int, n_out: int, n_in: int, is_seeded: bool = False) -> int:
    """What storing a pruned matrix takes, in the cheapest of three forms: 16 bits for each value, and for where they are

    - nothing, where a seed says it;
    - a bit for each entry of the matrix;
    - for each value its column in as few whole bits as a column needs, and 4 bytes a row.

    Args:
        n_kept: entries that are not zero.
        n_out: rows.
        n_in: columns.
        is_seeded: the entries were drawn at random.
    """
    n_positions = (
        0 if is_seeded else min(-(-n_out * n_in // 8), -(-n_kept * _column_bits(n_in) // 8) + POINTER_BYTES * n_out)
    )
    return VALUE_BYTES * n_kept + n_positions


def most_kept(n_bytes: int, n_out: int, n_in: int, is_seeded: bool = False) -> int:
    """The most entries that a matrix can keep within so many bytes; 0 where they do not pay for one."""
    if is_seeded:
        n = n_bytes // VALUE_BYTES
    else:
        by_mask = (n_bytes - -(-n_out * n_in // 8)) // VALUE_BYTES
        by_list = (n_bytes - POINTER_BYTES * n_out) * 8 // (8 * VALUE_BYTES + _column_bits(n_in))
        n = max(by_mask, by_list, 0)
    return min(n, n_out * n_in)


def _column_bits(n_in: int) -> int:
    return (n_in - 1).bit_length()
