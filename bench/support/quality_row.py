"""What bench_quality.py measures of one candidate."""

from __future__ import annotations

from dataclasses import dataclass

from support.kept import Kept


@dataclass(frozen=True)
class Row:
    """A candidate.

    Args:
        task: the fine-tune's name.
        base_type: of the base file.
        method: "base", or how the candidate was made.
        asked: the ratio that was asked for; None where there is none.
        ratio: bytes of the candidate to those of the fine-tune in 16 bits.
        n_bytes: of the candidate.
        error: ||D - D_hat|| / ||D|| over all matrices.
        kept: of the fine-tune.
        n_problems: that were asked.
        tuned_right: of them, by the fine-tune.
        seconds: that the candidate took to make.
    """

    task: str
    base_type: str
    method: str
    asked: str | None
    ratio: float
    n_bytes: int
    error: float
    kept: Kept
    n_problems: int
    tuned_right: int
    seconds: float
