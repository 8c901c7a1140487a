"""What a delta will hold, byte for byte, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Literal

from dqrelo_gguf.compress.budget import (
    MatrixShape,
    VectorMode,
    factor_types,
    is_matrix,
    ranks_fixed,
    ranks_for_ratio,
    ranks_of_paper,
)
from dqrelo_gguf.compress.factors import FACTOR_TYPES, type_of
from dqrelo_gguf.compress.lowrank import SvdMethod
from dqrelo_gguf.compress.mixes import Spectrum, choose
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import WeightSpec, stripped_ne
from dqrelo_gguf.model.pairing import Pair, Selection

MethodName = Literal["best", "paper"]
Importance = Literal["norm", "probe"]


@dataclass(frozen=True)
class Options:
    """How to convert. Exactly one of `ratio` and `rank` is set.

    `rank`, `vectors`, `factor_type` and `svd` belong to the paper's method, and choose it where no method is given.

    Args:
        ratio: of the file to the 16-bit size of the weights.
        importance: what errors of different weights count in the method `best`: "norm" takes it from their deltas, "probe"
            measures it by forward passes.
        method: "best" or "paper"; None for "best" unless an option of the paper's is given.
        rank: of every weight.
        vectors: "whole" (None) keeps norms and biases as they are; "paper" selects by magnitude, with the paper's ranks.
        factor_type: a key of FACTOR_TYPES; None for f16.
        svd: "randomised" (None) or "exact".
        selection: which weights.
        min_cosine: of the self-check.
    """

    ratio: Fraction | None = Fraction(1, 8)
    method: MethodName | None = None
    importance: Importance = "norm"
    rank: int | None = None
    vectors: VectorMode | None = None
    factor_type: str | None = None
    svd: SvdMethod | None = None
    selection: Selection = field(default_factory=Selection)
    min_cosine: float = 0.3

    @property
    def method_name(self) -> MethodName:
        """The method that is used."""
        return self.method or ("paper" if self._of_paper() else "best")

    def _of_paper(self) -> list[str]:
        """The options of the paper's method that are given."""
        given = {
            "--rank": self.rank,
            "--vectors": self.vectors,
            "--factor-type": self.factor_type,
            "--svd": self.svd,
        }
        return [name for name, value in given.items() if value is not None]

    def __post_init__(self) -> None:
        if self.importance == "probe" and self.method_name == "paper":
            raise InputError("--importance probe: belongs to --method best, and cannot go with the paper's method")
        if self.method == "best" and self._of_paper():
            raise InputError(f"{self._of_paper()[0]}: belongs to --method paper, and cannot go with --method best")
        if (self.ratio is None) == (self.rank is None):
            raise InputError("ratio and rank: give one of them")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"--rank {self.rank}: must not be negative")
        if self.vectors == "paper" and self.ratio is None:
            raise InputError("--vectors paper: selects by --ratio, so it cannot go with --rank")

    def as_metadata(self) -> Mapping[str, str | int | float | None]:
        """The options that decide the bytes."""
        of_all: dict[str, str | int | float | None] = {
            "ratio": None if self.ratio is None else str(self.ratio),
            "include": self.selection.include,
            "exclude": self.selection.exclude,
        }
        if self.method_name == "best":
            return of_all | {"importance": self.importance}
        return of_all | {
            "rank": self.rank,
            "vectors": self.vectors or "whole",
            "factor_type": self.factor_type or "f16",
            "svd": self.svd or "randomised",
        }


@dataclass(frozen=True)
class Planned:
    """A weight that changed, and how its delta is stored.

    Args:
        pair: the weight.
        spec: its tensors.
        predicted_error: ||D - D_hat|| / ||D|| by its spectrum, None where that is not known before.
    """

    pair: Pair
    spec: WeightSpec
    predicted_error: float | None = None


def plan_paper(pairs: list[Pair], options: Options) -> list[Planned]:
    """The specs of all weights by the paper's method, in order, with the ranks that the options give.

    Raises:
        InputError: the ratio is under what the sign bits, scales and vectors cost.
    """
    matrices = [_matrix(p, options.factor_type or "f16") for p in pairs if is_matrix(p.ne)]
    ranks = dict(zip((m.name for m in matrices), _ranks(matrices, pairs, options), strict=True))
    types = {m.name: (type_of(m.u_type), type_of(m.v_type)) for m in matrices}
    planned = []
    for p in pairs:
        ne = stripped_ne(p.ne)
        if p.name not in ranks:
            planned.append(Planned(p, WeightSpec.dense(p.name, ne)))
            continue
        u_type, v_type = types[p.name]
        planned.append(Planned(p, WeightSpec(p.name, ne, rank=ranks[p.name], u_type=u_type, v_type=v_type)))
    return planned


def plan_best(pairs: list[Pair], options: Options, spectra: Mapping[str, Spectrum]) -> list[Planned]:
    """The specs of all weights by the method `best`: the mixes that together lose least at the ratio.

    Args:
        pairs: the weights that changed.
        options: of the conversion.
        spectra: of those that `is_matrix` admits, by name.

    Raises:
        InputError: the ratio is under what vectors and the smallest factors cost.
    """
    assert options.ratio is not None
    n_bytes = options.ratio * 2 * sum(prod(p.ne) for p in pairs)
    n_vector_bytes = 4 * sum(prod(p.ne) for p in pairs if p.name not in spectra)
    mixes = dict(zip(spectra, choose(list(spectra.values()), options.ratio, n_bytes, n_vector_bytes), strict=True))
    planned = []
    for p in pairs:
        ne = stripped_ne(p.ne)
        if p.name not in mixes:
            planned.append(Planned(p, WeightSpec.dense(p.name, ne), 0.0))
            continue
        spectrum, (n_planes, n_codes) = spectra[p.name], mixes[p.name]
        mix = spectrum.mix(n_planes, n_codes)
        cscale = n_planes > 0 and spectrum.with_column_scales
        spec = WeightSpec(p.name, ne, n_planes, scale_per_row=n_planes > 0, cscale=cscale, plane_ranks=mix.plane_ranks)
        planned.append(Planned(p, spec, spectrum.relative_error(n_planes, n_codes)))
    return planned


def weighed(spectra: Mapping[str, Spectrum], measured: Mapping[str, float]) -> dict[str, Spectrum]:
    """The spectra with the geometric mean of their importance and the measured one.

    The probe alone trusts a few hundred tokens too much; the mean loses less on every pair (docs/method.md).
    """
    return {
        name: replace(s, importance=(s.importance * measured[name]) ** 0.5) if name in measured else s
        for name, s in spectra.items()
    }


def _matrix(pair: Pair, factor_type: str) -> MatrixShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    u_type, v_type = factor_types(n_in, n_out, FACTOR_TYPES[factor_type])
    return MatrixShape(pair.name, n_in, n_out, prod(experts), u_type, v_type)


def _ranks(matrices: list[MatrixShape], pairs: list[Pair], options: Options) -> list[int]:
    if options.ratio is None:
        assert options.rank is not None
        return ranks_fixed(options.rank, matrices)
    n_vector_elements = sum(prod(p.ne) for p in pairs if not is_matrix(p.ne))
    ranks = ranks_of_paper if options.vectors == "paper" else ranks_for_ratio
    return ranks(options.ratio, matrices, n_vector_elements)
