"""What a delta will hold, byte for byte, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

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
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import WeightSpec, stripped_ne
from dqrelo_gguf.model.pairing import Pair, Selection


@dataclass(frozen=True)
class Options:
    """How to convert. Exactly one of `ratio` and `rank` is set.

    Args:
        ratio: of the file to the 16-bit size of the weights.
        rank: of every weight.
        vectors: "whole" keeps norms and biases as they are; "paper" selects by magnitude, with the paper's ranks.
        factor_type: a key of FACTOR_TYPES.
        svd: "randomised" or "exact".
        selection: which weights.
        min_cosine: of the self-check.
    """

    ratio: Fraction | None = Fraction(1, 8)
    rank: int | None = None
    vectors: VectorMode = "whole"
    factor_type: str = "f16"
    svd: SvdMethod = "randomised"
    selection: Selection = field(default_factory=Selection)
    min_cosine: float = 0.3

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.rank is None):
            raise InputError("ratio and rank: give one of them")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"--rank {self.rank}: must not be negative")
        if self.vectors == "paper" and self.ratio is None:
            raise InputError("--vectors paper: selects by --ratio, so it cannot go with --rank")

    def as_metadata(self) -> Mapping[str, str | int | float | None]:
        """The options that decide the bytes."""
        return {
            "ratio": None if self.ratio is None else str(self.ratio),
            "rank": self.rank,
            "vectors": self.vectors,
            "factor_type": self.factor_type,
            "svd": self.svd,
            "include": self.selection.include,
            "exclude": self.selection.exclude,
        }


@dataclass(frozen=True)
class Planned:
    """A weight that changed, and how its delta is stored."""

    pair: Pair
    spec: WeightSpec


def plan(pairs: list[Pair], options: Options) -> list[Planned]:
    """The specs of all weights, in order, with the ranks that the options give.

    Raises:
        InputError: the ratio is under what the sign bits, scales and vectors cost.
    """
    if not pairs:
        raise InputError("nothing to convert: no weight of the fine-tune differs from the base")
    matrices = [_matrix(p, options.factor_type) for p in pairs if is_matrix(p.ne)]
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


def _matrix(pair: Pair, factor_type: str) -> MatrixShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    u_type, v_type = factor_types(n_in, n_out, FACTOR_TYPES[factor_type])
    return MatrixShape(pair.name, n_in, n_out, prod(experts), u_type, v_type)


def _ranks(matrices: list[MatrixShape], pairs: list[Pair], options: Options) -> list[int]:
    if options.ratio is None:
        assert options.rank is not None
        return ranks_fixed(options.rank, matrices)
    if options.vectors == "paper":
        return ranks_of_paper(options.ratio, matrices)
    n_vector_elements = sum(prod(p.ne) for p in pairs if not is_matrix(p.ne))
    return ranks_for_ratio(options.ratio, matrices, n_vector_elements)
