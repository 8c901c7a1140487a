"""The tables of bench_quality.py: what was kept for each method (rows) and size (columns)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.kept import Kept, Mean
    from support.quality_row import Row

LEGEND = "KL(fine-tune || candidate) in nats over the tokens of the answers ± standard error / over all tokens, right answers"


def tables(rows: Sequence[Row]) -> str:
    """Everything about one fine-tune, as Markdown.

    Args:
        rows: its candidates, the base among them.
    """
    first = rows[0]
    head = f"{first.task}, {first.base_type} base: {first.n_problems} problems, the fine-tune has {first.tuned_right} right"
    parts = [head, LEGEND, _by_size([r for r in rows if r.asked]), _whole([r for r in rows if not r.asked])]
    return "\n\n".join(part for part in parts if part)


def _by_size(rows: Sequence[Row]) -> str:
    """The deltas: a row a method, a column a ratio, a dash for what cannot be made."""
    if not rows:
        return ""
    sizes = list(dict.fromkeys(r.asked for r in rows))
    cells = {(r.method, r.asked): cell(r.kept) for r in rows}
    methods = dict.fromkeys(r.method for r in rows)
    return _markdown(["", *map(str, sizes)], ([m, *(cells.get((m, size), "-") for size in sizes)] for m in methods))


def _whole(rows: Sequence[Row]) -> str:
    """Models that are no deltas: the base, and the fine-tune in few bits."""
    return _markdown(["", "size", "kept"], ([r.method, f"{r.ratio:.3f}", cell(r.kept)] for r in rows))


def _markdown(head: Sequence[str], lines: Iterator[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def cell(kept: Kept) -> str:
    """What was kept, as LEGEND says."""
    return f"{measured(kept.kl_answers)} / {kept.kl_all.value:.2g}, {kept.right}"


def measured(mean: Mean) -> str:
    """A divergence and its standard error, to the place of the error's first digit."""
    if mean.error == 0:
        return f"{mean.value:.2g}"
    places = max(0, -math.floor(math.log10(mean.error)))
    return f"{mean.value:.{places}f} ± {mean.error:.{places}f}"
