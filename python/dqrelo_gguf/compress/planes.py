"""Sign planes of a residual with a scale for each row of each plane and one for each column, R ~ sum of r_p (S_p c), or with
one scale for each plane.

A row is coded like a vector of as many planes (codes.py), after its columns are divided by their scales. Rows that share
their scales (shared_scales.py) have none for columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices, slices_of
from dqrelo_gguf.compress.codes import Coded, code_by, code_rows
from dqrelo_gguf.compress.feedback import BLOCK_ROWS, shape_rows
from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.compress.shared_scales import shared_scales
from dqrelo_gguf.compress.signs import pack_signs


@dataclass
class Planes:
    """Sign planes of one matrix.

    Args:
        bits: of each plane, (n_out, n_in // 8).
        scales: (n_planes, n_out) float32, or (n_planes, 1) where all rows share them.
        column_scales: (n_in,) float32, of mean 1; None for none.
    """

    bits: list[npt.NDArray[np.uint8]]
    scales: torch.Tensor
    column_scales: torch.Tensor | None


def subtract_planes(R: torch.Tensor, n_planes: int, columns: torch.Tensor, blocks: Blocks) -> Planes:
    """Turns R into what its planes leave, in place.

    Args:
        R: (n_out, n_in) float32.
        n_planes: 1 to 4.
        columns: the column scales, (n_in,) float32.
        blocks: the threads to work with.
    """
    out = _empty(R, n_planes, columns)

    def step(s: slice) -> None:
        coded = code_rows(R[s] / columns, n_planes)
        _put(out, s, coded)
        R[s] -= coded.values * columns

    blocks.run(step, row_slices(*R.shape))
    return out


def subtract_even_planes(R: torch.Tensor, n_planes: int, blocks: Blocks) -> Planes:
    """Turns R into what its planes leave, in place; all rows share their scales, and there are none for columns.

    Args:
        R: (n_out, n_in) float32.
        n_planes: 1 to 4.
        blocks: the threads to work with.
    """
    scales = shared_scales(R, n_planes, blocks)
    out = Planes(_empty_bits(R, n_planes), scales.T.contiguous(), None)

    def step(s: slice) -> None:
        coded = code_by(R[s], scales)
        _put_bits(out, s, coded)
        R[s] -= coded.values

    blocks.run(step, row_slices(*R.shape))
    return out


def subtract_shaped_planes(R: torch.Tensor, n_planes: int, metric: Metric, blocks: Blocks) -> Planes:
    """Turns R into what its planes leave, in place; they are chosen under a metric, without column scales.

    Args:
        R: (n_out, n_in) float32.
        n_planes: 1 to 4.
        metric: of R's errors.
        blocks: the threads to work with.
    """
    out = _empty(R, n_planes, None)
    for s in slices_of(R.shape[0], blocks.n_threads * BLOCK_ROWS):
        values = torch.empty_like(R[s])
        rows = slice(0, len(values))
        _put(out, s, shape_rows(R[s], [(rows, n_planes)], metric, values, blocks)[0])
        R[s] -= values
    return out


def _empty(R: torch.Tensor, n_planes: int, columns: torch.Tensor | None) -> Planes:
    return Planes(_empty_bits(R, n_planes), R.new_empty((n_planes, R.shape[0])), columns)


def _empty_bits(R: torch.Tensor, n_planes: int) -> list[npt.NDArray[np.uint8]]:
    n_out, n_in = R.shape
    return [np.empty((n_out, n_in // 8), np.uint8) for _ in range(n_planes)]


def _put(out: Planes, rows: slice, coded: Coded) -> None:
    _put_bits(out, rows, coded)
    out.scales[:, rows] = coded.scales.T


def _put_bits(out: Planes, rows: slice, coded: Coded) -> None:
    for p, bits in enumerate(out.bits):
        bits[rows] = pack_signs(((coded.codes >> p) & 1).cpu().numpy())


def column_scales(R: torch.Tensor, n_planes: int, blocks: Blocks) -> torch.Tensor:
    """The column scales (n_in,) of least squares for the planes that R has with those of its columns' sizes; their mean is 1.

    Without a first guess, a column that is larger than others would have all its numbers at the outermost values of the planes, which are
    larger then, too: least squares would leave it too small a scale.
    """
    sizes = _column_sizes(R, blocks)

    def sums(s: slice) -> torch.Tensor:
        values = code_rows(R[s] / sizes, n_planes).values * sizes
        return torch.stack(
            [(R[s] * values).sum(dim=0, dtype=torch.float64), values.square().sum(dim=0, dtype=torch.float64)]
        )

    shared, own = blocks.sum_rows(sums, *R.shape)
    return _as_scales(torch.where(own > 0, shared / own.clamp(min=1e-300), torch.ones_like(own)) * sizes)


def _column_sizes(R: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """The root mean squares (n_in,) of R's columns, after its rows are divided by theirs; their mean is 1."""

    def squares(s: slice) -> torch.Tensor:
        rows = R[s].square()
        return (rows / rows.mean(dim=1, keepdim=True).clamp(min=1e-30)).sum(dim=0).double()

    return _as_scales(blocks.sum_rows(squares, *R.shape).sqrt())


def _as_scales(found: torch.Tensor) -> torch.Tensor:
    """Scales of columns (n_in,) float32 whose mean is 1.

    A column that planes fit with the wrong sign, or of zeros, has a small one: no division by zero follows.
    """
    mean = found.abs().mean()
    scales = found.clamp(min=1e-3 * float(mean)) if mean > 0 else torch.ones_like(found)
    return (scales / scales.mean()).float()
