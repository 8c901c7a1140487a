"""Pruned deltas as rivals: no delta file holds one, so each is merged with the base into a whole model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dqrelo_gguf.compress.budget import parse_ratio
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.convert.plan import DEFAULT_RATIO, Options
from dqrelo_gguf.errors import InputError, printable

PRUNING = tuple(name for name, method in METHODS.items() if method.keeps is not None)


@dataclass(frozen=True)
class Pruning:
    """Which entries of a delta stay, and how many.

    Args:
        method: of PRUNING.
        ratio: of the bytes of the entries that stay, with their places, to those of the weights in 16 bits.
    """

    method: str
    ratio: Fraction

    @property
    def name(self) -> str:
        """For reports and files."""
        return f"{self.method}-{self.ratio.numerator}-{self.ratio.denominator}"

    @property
    def needs_inputs(self) -> bool:
        """Whether the choice needs to know what the weights multiply."""
        return METHODS[self.method].keeps == "active"

    def write(
        self, base: Path, tuned: Path, folder: Path, imatrix: Path | None, n_threads: int | None
    ) -> tuple[Path, int]:
        """The merged model, and the bytes that the pruned delta is charged.

        Raises:
            DqreloError: it cannot be made.
        """
        out = folder / f"{self.name}.gguf"
        job = Job(base, tuned, out, imatrix=imatrix if self.needs_inputs else None, n_threads=n_threads)
        return out, convert(job, Options(method=self.method, ratio=self.ratio)).n_bytes


def check_prunings(texts: tuple[str, ...]) -> tuple[Pruning, ...]:
    """METHOD or METHOD:RATIO as prunings, each once.

    Raises:
        InputError: one is none.
    """
    return tuple(dict.fromkeys(map(_pruning_of, texts)))


def _pruning_of(text: str) -> Pruning:
    method, _, ratio = text.partition(":")
    if method not in PRUNING:
        raise InputError(
            f"--pruned {printable(text)}: expected one of {', '.join(PRUNING)}, or one with a ratio, such as magnitude:1/8"
        )
    return Pruning(method, parse_ratio(ratio) if ratio else DEFAULT_RATIO)
