"""Scales that all rows of a matrix share: what they are, and what planes with them lose.

Rows of n numbers pay 32 / n bits a number for a scale of each plane, which where rows are alike buys nothing.
"""

from __future__ import annotations

import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.codes import fitted_scales, gaussian_scales, level_sums, upper_half
from dqrelo_gguf.compress.paper import norm

# Rows, and columns, of equally many energies each that stand for all of them.
N_CLASSES = 64


def shared_scales(R: torch.Tensor, n_planes: int, blocks: Blocks) -> torch.Tensor:
    """The scales (1, b) of a matrix, found as those of a row are (codes.py); exact in BF16.

    Args:
        R: (n_out, n_in) float32.
        n_planes: b, 1 to 4.
        blocks: the threads to work with.
    """
    rms = norm(R, blocks) / R.numel() ** 0.5
    begin = upper_half(gaussian_scales(R.new_full((1, 1), rms), n_planes))

    def sums(s: slice) -> torch.Tensor:
        return torch.stack([own.sum(dim=0, dtype=torch.float64) for own in level_sums(R[s].abs(), begin.middles)])

    count, total = blocks.sum_rows(sums, *R.shape)
    return fitted_scales(count[None], total[None], begin, n_planes)


def energies_left(D: torch.Tensor, n_planes_max: int, blocks: Blocks) -> torch.Tensor:
    """What 0, 1, ... n_planes_max planes are expected to leave of ||D||^2; float64 (n_planes_max + 1,).

    Args:
        D: (n_out, n_in) float32.
        n_planes_max: at most 4.
        blocks: the threads to work with.
    """
    rows = D.new_empty(D.shape[0], dtype=torch.float64)

    def sums(s: slice) -> torch.Tensor:
        squares = D[s].square()
        rows[s] = squares.sum(dim=1).double()
        return squares.sum(dim=0).double()

    columns = blocks.sum_rows(sums, *D.shape).cpu()
    total = columns.sum()
    losses = [shared_loss(rows.cpu(), columns, b) if total > 0 else 0.0 for b in range(1, n_planes_max + 1)]
    return total * torch.tensor([1.0, *losses], dtype=torch.float64)


def shared_loss(rows: torch.Tensor, columns: torch.Tensor, n_planes: int) -> float:
    """What b planes with the scales above lose of a matrix's energy, if element (i, j) is Gaussian of variance ~ rows_i columns_j.

    The scales and the loss are those of the expected sums instead of a matrix's.

    Args:
        rows: the energies of the matrix's rows, (n_out,) float64, not all zero.
        columns: of its columns, (n_in,) likewise.
        n_planes: b, 1 to 4.
    """
    # The mean of their squares is 1.
    deviations = (_classes(rows)[:, None] * _classes(columns)).reshape(-1, 1).sqrt()
    begin = upper_half(gaussian_scales(deviations.new_ones((1, 1)), n_planes))
    count, total = _expected_sums(deviations, begin.middles)
    scales = fitted_scales(count.sum(dim=0)[None], total.sum(dim=0)[None], begin, n_planes)
    levels = upper_half(scales.double())
    count, total = _expected_sums(deviations, levels.middles)
    left = deviations.square() + (count * levels.values.square() - 2 * total * levels.values).sum(dim=1, keepdim=True)
    return float(left.mean())


def _classes(energies: torch.Tensor) -> torch.Tensor:
    """The means of equally many energies each, in ascending order; their own mean is 1."""
    parts = energies.sort().values.tensor_split(min(N_CLASSES, len(energies)))
    means = torch.stack([part.mean() for part in parts])
    return means / means.mean()


def _expected_sums(deviations: torch.Tensor, middles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """level_sums of one Gaussian number for each standard deviation (k, 1), as expected values."""
    ends = torch.nn.functional.pad(middles, (1, 0))
    ends = torch.nn.functional.pad(ends, (0, 1), value=torch.inf) / deviations.clamp(min=1e-300)  # (k, 2^(b-1) + 1)
    mass = 2 * torch.special.ndtr(ends)
    density = (-ends.square() / 2).exp() * (2 / torch.pi) ** 0.5
    return mass.diff(dim=1), -density.diff(dim=1) * deviations
