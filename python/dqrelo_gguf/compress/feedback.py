"""Rows of few bits under a metric: what one number loses, those after it make up for (GPTQ, arXiv:2210.17323).

The columns are coded one after the other. Each number takes the nearest value of its row's; its error is spread over the
columns that are left, as much as they can take it up under the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dqrelo_gguf.compress.blocks import CPU, Blocks, slices_of
from dqrelo_gguf.compress.codes import Coded, encode_rows, levels_of
from dqrelo_gguf.compress.metric import Metric

# Columns whose errors reach those behind them in one product.
BLOCK_COLUMNS = 64
# Rows that one thread codes together.
BLOCK_ROWS = 1024


def shape_rows(
    X: torch.Tensor, parts: Sequence[tuple[slice, int]], metric: Metric, values: torch.Tensor, blocks: Blocks
) -> list[Coded]:
    """Codes rows so that the metric's norm of what they lose is small.

    Args:
        X: (k, n) float32.
        parts: rows and their number of planes; together all rows.
        metric: of n columns.
        values: (k, n) float32, where the values are put.
        blocks: the threads to work with.

    Returns:
        One for each part; their values are views of `values`.
    """
    rows = [s for s, _ in parts]
    scales = [encode_rows(X[s], n_planes, values[s], blocks).scales for s, n_planes in parts]
    values[:], codes = _shape(X, rows, scales, metric, blocks)
    scales = [_scales(X[s], codes[s], n_planes, metric, blocks) for s, n_planes in parts]
    values[:], codes = _shape(X, rows, scales, metric, blocks)
    return [Coded(values[s], own, codes[s]) for s, own in zip(rows, scales, strict=True)]


def _scales(X: torch.Tensor, codes: torch.Tensor, n_planes: int, metric: Metric, blocks: Blocks) -> torch.Tensor:
    """The scales (k, b) of least squares under the metric for codes (k, n), exact in BF16."""
    k, n = X.shape
    planes = torch.arange(n_planes, device=X.device)[None, :, None]
    signs = (((codes[:, None, :] >> planes) & 1) * 2.0 - 1).float()  # (k, b, n)
    weighed = blocks.matmul(signs.view(k * n_planes, n), metric.H).view(k, n_planes, n)
    left = torch.einsum("kpn,kqn->kpq", weighed, signs)
    right = torch.einsum("kpn,kn->kp", weighed, X)
    # Two planes with equal signs share their scale: the ridge makes the equations solvable.
    ridge = 1e-6 * n * torch.eye(n_planes, device=X.device)
    scales: torch.Tensor = torch.linalg.solve(left + ridge, right)
    return scales.bfloat16().float()


def _shape(
    X: torch.Tensor, rows: Sequence[slice], scales: Sequence[torch.Tensor], metric: Metric, blocks: Blocks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and codes (k, n) for fixed scales of some rows each."""
    k, n = X.shape
    n_levels = max(1 << own.shape[1] for own in scales)
    # Rows of fewer planes have fewer values: the rest of their places lies behind every number.
    levels = X.new_full((k, n_levels), torch.inf)
    middles = X.new_full((k, n_levels - 1), torch.inf)
    code_of = X.new_zeros((k, n_levels), dtype=torch.uint8)
    for s, own in zip(rows, scales, strict=True):
        m = 1 << own.shape[1]
        levels[s, :m], middles[s, : m - 1], order = levels_of(own)
        code_of[s, :m] = order.to(torch.uint8)
    values, codes = X.new_empty((k, n)), X.new_empty((k, n), dtype=torch.uint8)

    def step(s: slice) -> None:
        _feed_back(X[s], Levels(levels[s], middles[s], code_of[s]), metric, values[s], codes[s])

    blocks.run(step, slices_of(k, BLOCK_ROWS))
    return values, codes


@dataclass(frozen=True)
class Levels:
    """What the numbers of rows can be, ascending.

    Args:
        values: (k, 2^b) float32; rows of fewer planes have infinity at the end.
        middles: (k, 2^b - 1) between them.
        codes: (k, 2^b) uint8, of the values.
    """

    values: torch.Tensor
    middles: torch.Tensor
    codes: torch.Tensor

    @property
    def turned(self) -> Levels:
        """A row's levels as a column."""
        return Levels(self.values.T.contiguous(), self.middles.T.contiguous(), self.codes.T.contiguous())


def _feed_back(X: torch.Tensor, levels: Levels, metric: Metric, values: torch.Tensor, codes: torch.Tensor) -> None:
    """Puts the value of each number among its row's levels, and its code, into (k, n)."""
    k, n = X.shape
    wanted = X.T[metric.sequence].contiguous()  # (n, k), a column a row
    found, found_codes = X.new_empty((n, k)), codes.new_empty((n, k))
    levels = levels.turned
    for begin in range(0, n, BLOCK_COLUMNS):
        end = min(begin + BLOCK_COLUMNS, n)
        own, n_own = wanted[begin:end], end - begin
        share = metric.feedback[begin:end, begin:]
        errors = X.new_empty((n_own, k))
        inside = share[:, :n_own].contiguous()
        feed_back_among(Columns(own, inside, levels, found[begin:end], found_codes[begin:end], errors))
        wanted[end:].addmm_(share[:, n_own:].T, errors, alpha=-1)
    inverse = torch.argsort(metric.sequence)
    values[:] = found[inverse].T
    codes[:] = found_codes[inverse].T


@dataclass(frozen=True)
class Columns:
    """Some columns that are coded one after the other. They lie as rows here, all contiguous and float32 unless it says otherwise.

    Args:
        x: (m, k), what is wanted. Destroyed.
        share: (m, m), how much of the error in one column each of the others takes.
        levels: of the rows, turned.
        values: (m, k), where the levels that are taken are put.
        codes: (m, k) uint8, where theirs are put.
        errors: (m, k), where what is wanted less the values is put.
    """

    x: torch.Tensor
    share: torch.Tensor
    levels: Levels
    values: torch.Tensor
    codes: torch.Tensor
    errors: torch.Tensor

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All of them, in the sequence above."""
        levels = self.levels
        return self.x, self.share, levels.values, levels.middles, levels.codes, self.values, self.codes, self.errors


def feed_back_among(columns: Columns) -> None:
    """Takes the values of columns, and feeds their errors back among them."""
    if columns.x.device != CPU:
        feed_back_by_tensors(columns)
        return
    from dqrelo_gguf.native import core

    core.feed_back(*(part.numpy() for part in columns.parts))


def feed_back_by_tensors(columns: Columns) -> None:
    """The same by torch's functions, on any device."""
    levels = columns.levels.turned
    # Little is computed for a column, so each call counts.
    parts = columns.x, columns.values, columns.codes, columns.errors
    for j, (own, value, code, error) in enumerate(zip(*(part.unbind() for part in parts), strict=True)):
        place = _nearest(own, levels)
        torch.gather(levels.values, 1, place, out=value[:, None])
        torch.gather(levels.codes, 1, place, out=code[:, None])
        torch.sub(own, value, out=error)
        columns.x[j + 1 :].addr_(columns.share[j, j + 1 :], error, alpha=-1)


def _nearest(x: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Which level of each row is nearest to x, (k,); (k, 1) int64."""
    if levels.values.shape[1] == 2:  # those of one plane, of both signs
        return (~torch.signbit(x))[:, None].long()
    return torch.searchsorted(levels.middles, x[:, None])
