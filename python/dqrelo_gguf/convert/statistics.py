"""What a fine-tune changed over its base, before any compression: statistics of every weight's delta (the paper's Table 1)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.compress.delta_statistics import DeltaStatistics
from dqrelo_gguf.convert.encode import delta_of
from dqrelo_gguf.convert.report import kind
from dqrelo_gguf.errors import printable
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.checkpoint import open_checkpoint
from dqrelo_gguf.model.pairing import Pair, Selection, pair_weights
from dqrelo_gguf.model.selfcheck import check_weight
from dqrelo_gguf.model.vocabulary import fit_vocabulary
from dqrelo_gguf.progress import Phases, Silent

if TYPE_CHECKING:
    from rich.table import Table

# This line stands below the table.
LEGEND = (
    "mean |D|: over elements. mean sv: over singular values. entropy: of a matrix's singular values, in bits.\n"
    "rank: effective, 2^entropy of a matrix. |D|_F: Frobenius norm. relative: |D|_F / |W_base|_F. Vectors have no spectrum."
)


@dataclass(frozen=True)
class Row:
    """A weight, a kind of weights, or all of them.

    Args:
        label: its name.
        n_weights: how many.
        statistics: of their deltas.
    """

    label: str
    n_weights: int
    statistics: DeltaStatistics

    def as_json(self) -> dict[str, Any]:
        """The figures, and the sums that they come from."""
        s = self.statistics
        figures = ("magnitude", "singular_value", "entropy", "effective_rank", "frobenius", "relative")
        return {
            "name": self.label,
            "n_weights": self.n_weights,
            **{name: getattr(s, name) for name in figures},
            "sums": asdict(s),
        }


@dataclass(frozen=True)
class FineTuneStatistics:
    """A fine-tune's deltas.

    Args:
        base: label of the base.
        tuned: label of the fine-tune.
        weights: a row each, in the base's order.
        notes: what of the fine-tune's files is left out.
    """

    base: str
    tuned: str
    weights: list[Row]
    notes: list[str]

    def kinds(self) -> list[Row]:
        """A row a kind, in order of first appearance."""
        groups: dict[str, list[Row]] = {}
        for row in self.weights:
            groups.setdefault(kind(row.label), []).append(row)
        return [_sum(label, rows) for label, rows in groups.items()]

    def total(self) -> Row:
        """All weights."""
        return _sum("all", self.weights)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "notes": self.notes,
            "all": self.total().as_json(),
            "kinds": [row.as_json() for row in self.kinds()],
            "weights": [row.as_json() for row in self.weights],
        }


def measure(
    base_path: str | os.PathLike[str],
    tuned_path: str | os.PathLike[str],
    phases: Phases = Silent,
    n_threads: int | None = None,
) -> FineTuneStatistics:
    """Reads two models, a weight at a time.

    Args:
        base_path: the base GGUF, or an address.
        tuned_path: the fine-tune, a Hugging Face directory or a GGUF, or an address.
        phases: shows the progress.
        n_threads: None for all cores. Does not change the result.

    Raises:
        DqreloError: they do not belong together, as for a conversion.
    """
    base = GgufModel(local(base_path, Kind.MODEL))
    tuned = fit_vocabulary(base, open_checkpoint(local(tuned_path, Kind.TUNED), base))
    with open_blocks(n_threads) as blocks:
        pairing = pair_weights(base, tuned, Selection(), blocks)
        rows = []
        with phases("measuring", sum(prod(p.ne) for p in pairing.pairs)) as progress:
            for pair in pairing.pairs:
                check_weight(pair, base, tuned, blocks)
                rows.append(Row(pair.name, 1, _statistics(pair, base, tuned, blocks)))
                progress.step(prod(pair.ne), pair.name)
    return FineTuneStatistics(base.label, tuned.label, rows, pairing.notes)


def _statistics(pair: Pair, base: GgufModel, tuned: Model, blocks: Blocks) -> DeltaStatistics:
    D = delta_of(pair, base, tuned, blocks)
    squares = _base_squares(pair.name, base, blocks)
    if not is_matrix(pair.ne):
        return DeltaStatistics.of_vector(torch.from_numpy(D), squares, blocks)
    n_in, n_out, *_ = pair.ne
    matrices = [DeltaStatistics.of_matrix(torch.from_numpy(m), 0.0, blocks) for m in D.reshape(-1, n_out, n_in)]
    return sum(matrices, DeltaStatistics(0, 0.0, 0.0, squares))


def _base_squares(name: str, base: GgufModel, blocks: Blocks) -> float:
    """The sum of W_base^2, added in the order of the rows."""
    parts: dict[int, float] = {}

    def add(rows: slice, values: Any) -> None:
        parts[rows.start] = float(torch.from_numpy(values).square().sum(dtype=torch.float64))

    base.visit(name, blocks, add)
    return sum(parts[start] for start in sorted(parts))


def _sum(label: str, rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return Row(label, sum(r.n_weights for r in rows), sum((r.statistics for r in rows[1:]), rows[0].statistics))


def table(rows: Sequence[Row]) -> Table:
    """The rows as a rich table that fits 80 columns. LEGEND explains its headings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("kind", overflow="fold")
    for heading in ("count", "mean |D|", "mean sv", "entropy", "rank", "|D|_F", "relative"):
        out.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        s = row.statistics
        out.add_row(
            Text(printable(row.label).removesuffix(".weight")),
            str(row.n_weights),
            f"{s.magnitude:.3g}",
            "-" if s.singular_value is None else f"{s.singular_value:.3g}",
            "-" if s.entropy is None else f"{s.entropy:.3f}",
            "-" if s.effective_rank is None else f"{s.effective_rank:.1f}",
            f"{s.frobenius:.3g}",
            f"{s.relative:.4f}",
        )
    return out
