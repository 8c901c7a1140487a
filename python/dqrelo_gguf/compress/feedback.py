"""Rows of few bits under a metric: what one number loses, those after it make up for (GPTQ, arXiv:2210.17323).

The columns are coded one after the other. Each number takes the nearest value of its row's; its error is spread over the
columns that are left, as much as they can take it up under the metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dqrelo_gguf.compress.blocks import Blocks, slices_of
from dqrelo_gguf.compress.codes import Coded, code_rows, levels_of
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
    scales = [code_rows(X[s].contiguous(), n_planes).scales for s, n_planes in parts]
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
        values[s] = _feed_back(X[s], levels[s], middles[s], metric)
        codes[s] = torch.gather(code_of[s], 1, torch.searchsorted(levels[s], values[s]))

    blocks.run(step, slices_of(k, BLOCK_ROWS))
    return values, codes


def _feed_back(X: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor, metric: Metric) -> torch.Tensor:
    """The value of each number among its row's levels, (k, n)."""
    k, n = X.shape
    wanted = X.T[metric.sequence].contiguous()  # (n, k), a column a row
    found = X.new_empty((n, k))
    for begin in range(0, n, BLOCK_COLUMNS):
        end = min(begin + BLOCK_COLUMNS, n)
        own, n_own = wanted[begin:end], end - begin
        # Each row by its diagonal, so that what it is multiplied with is the error itself.
        share = metric.feedback[begin:end, begin:] / metric.feedback.diagonal()[begin:end, None]
        errors = X.new_empty((n_own, k))
        # Little is computed for a column, so each call counts.
        for j, (x, value, error) in enumerate(
            zip(own.unbind(), found[begin:end].unbind(), errors.unbind(), strict=True)
        ):
            _nearest(x, levels, middles, value)
            torch.sub(x, value, out=error)
            own[j + 1 :].addr_(share[j, j + 1 : n_own], error, alpha=-1)
        wanted[end:].addmm_(share[:, n_own:].T, errors, alpha=-1)
    inverse = torch.argsort(metric.sequence)
    return found[inverse].T.contiguous()


def _nearest(x: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor, value: torch.Tensor) -> None:
    """Puts the level of each row that is nearest to x, (k,), into `value`."""
    if levels.shape[1] == 2:  # those of one plane, of both signs
        torch.copysign(levels[:, 1], x, out=value)
    else:
        torch.gather(levels, 1, torch.searchsorted(middles, x[:, None]), out=value[:, None])
