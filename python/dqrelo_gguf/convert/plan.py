"""What a delta will hold, byte for byte, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Literal

from dqrelo_gguf.compress.budget import (
    MatrixShape,
    VectorMode,
    factor_types,
    is_matrix,
    rank_within,
    ranks_fixed,
    ranks_for_ratio,
    ranks_of_paper,
    shown_ratio,
    spread,
    too_small,
)
from dqrelo_gguf.compress.factors import FACTOR_TYPES, type_of
from dqrelo_gguf.compress.groups import GroupedShape, plane_ranks
from dqrelo_gguf.compress.lowrank import SvdMethod
from dqrelo_gguf.compress.mixes import CODE_STEP, Spectrum, choose
from dqrelo_gguf.compress.pruning import most_kept, pruned_bytes
from dqrelo_gguf.convert.methods import (
    BEST,
    FACTOR_TYPE,
    METHODS,
    PAPER,
    PROBE,
    RANK,
    RATIO,
    SVD,
    VECTORS,
    Kind,
    Method,
    taking,
)
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import Type, WeightSpec, stripped_ne
from dqrelo_gguf.model.pairing import Pair, Selection
from dqrelo_gguf.model.parts import module_of

Importance = Literal["norm", "probe"]
DEFAULT_RATIO = Fraction(1, 8)


@dataclass(frozen=True)
class Options:
    """How to convert. At most one of `ratio` and `rank` is given; which options go together is in the table of methods.

    `rank`, `vectors`, `factor_type` and `svd` choose the paper's method where no method is given.

    Args:
        ratio: of the file to the 16-bit size of the weights; None for 1/8, a rank, or the one size of the method.
        importance: what errors of different weights count in the method `best`: "norm" takes it from their deltas, "probe"
            measures it by forward passes.
        method: a name of methods.METHODS; None for "best" unless an option of the paper's is given.
        rank: of every weight.
        vectors: "whole" (None) keeps norms and biases as they are; "paper" selects by magnitude, with the paper's ranks.
        factor_type: a key of FACTOR_TYPES; None for f16.
        svd: "randomised" (None) or "exact".
        selection: which weights.
        min_cosine: of the self-check.
    """

    ratio: Fraction | None = None
    method: str | None = None
    importance: Importance = "norm"
    rank: int | None = None
    vectors: VectorMode | None = None
    factor_type: str | None = None
    svd: SvdMethod | None = None
    selection: Selection = field(default_factory=Selection)
    min_cosine: float = 0.3

    @property
    def method_name(self) -> str:
        """The method that is used."""
        by_option = any(option in METHODS[PAPER].takes for option in self._given() if option != RATIO)
        return self.method or (PAPER if by_option else BEST)

    @property
    def row(self) -> Method:
        """The method that is used."""
        return METHODS[self.method_name]

    @property
    def budget(self) -> Fraction | None:
        """The ratio that is kept to; None where a rank is given, or the method has one size."""
        if self.rank is not None or RATIO not in self.row.takes:
            return None
        return self.ratio or DEFAULT_RATIO

    def _given(self) -> list[str]:
        """The options that not every method takes, and that are given."""
        given = {
            RATIO: self.ratio,
            RANK: self.rank,
            VECTORS: self.vectors,
            FACTOR_TYPE: self.factor_type,
            SVD: self.svd,
            PROBE: self.importance if self.importance == "probe" else None,
        }
        return [name for name, value in given.items() if value is not None]

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise InputError(f"--method {self.method}: unknown, expected one of {', '.join(METHODS)}")
        for option in self._given():
            check_takes(self.method_name, option)
        if self.ratio is not None and self.rank is not None:
            raise InputError("ratio and rank: give one of them")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"--rank {self.rank}: must not be negative")
        if self.vectors == "paper" and self.rank is not None:
            raise InputError("--vectors paper: selects by --ratio, so it cannot go with --rank")

    def as_metadata(self) -> Mapping[str, str | int | float | None]:
        """The options that decide the bytes."""
        of_methods = {
            RATIO: ("ratio", None if self.budget is None else str(self.budget)),
            PROBE: ("importance", self.importance),
            RANK: ("rank", self.rank),
            VECTORS: ("vectors", self.vectors or "whole"),
            FACTOR_TYPE: ("factor_type", self.factor_type or "f16"),
            SVD: ("svd", self.svd or "randomised"),
        }
        taken = dict(value for option, value in of_methods.items() if option in self.row.takes)
        return {"include": self.selection.include, "exclude": self.selection.exclude, **taken}


def check_takes(name: str, option: str) -> None:
    """Refuses an option that a method does not have.

    Raises:
        InputError: the method does not take it.
    """
    if option in METHODS[name].takes:
        return
    if option == RATIO:
        raise InputError(f"--ratio: --method {name} has one size, that of {METHODS[name].what}. Leave --ratio out")
    raise InputError(f"{option}: cannot go with --method {name}, belongs to --method {taking(option)}")


@dataclass(frozen=True)
class Planned:
    """A weight that changed, and how its delta is stored.

    Args:
        pair: the weight.
        spec: its tensors.
        predicted_error: ||D - D_hat|| / ||D|| by its spectrum, None where that is not known before.
        n_kept: entries that pruning keeps of each matrix; None where nothing is pruned.
        n_charged: bytes that it is charged, where those are not the bytes of its tensors.
    """

    pair: Pair
    spec: WeightSpec
    predicted_error: float | None = None
    n_kept: int | None = None
    n_charged: int | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that it is charged."""
        return self.spec.n_bytes if self.n_charged is None else self.n_charged


def plan_stages(pairs: list[Pair], options: Options) -> list[Planned]:
    """The specs of all weights by a method of stages, in order, with the ranks that the options give.

    Raises:
        InputError: the ratio is under what the sign bits, scales and vectors cost.
    """
    method = options.row
    carried = [p for p in pairs if is_linear(p)] if method.linear_only else pairs
    if not carried:
        raise InputError(f"--method {options.method_name}: no linear projection of attention or MLP changed")
    n_planes = method.stages.count("sign")
    matrices = [_matrix(p, options.factor_type or "f16", n_planes) for p in carried if is_matrix(p.ne)]
    ranks = dict(zip((m.name for m in matrices), _ranks(matrices, pairs, options), strict=True))
    types = {m.name: (type_of(m.u_type), type_of(m.v_type)) for m in matrices}
    planned = []
    for p in carried:
        ne = stripped_ne(p.ne)
        if p.name not in ranks:
            planned.append(Planned(p, WeightSpec.dense(p.name, ne)))
            continue
        u_type, v_type = types[p.name]
        spec = WeightSpec(p.name, ne, n_planes, rank=ranks[p.name], u_type=u_type, v_type=v_type)
        planned.append(Planned(p, spec))
    return planned


def plan_groups(pairs: list[Pair], options: Options) -> list[Planned]:
    """The specs of all weights in singular vectors of several bits, as many as a share of the ratio in proportion to the elements pays for.

    Raises:
        InputError: the ratio is under what the vectors and the smallest factors cost.
    """
    ratio = options.budget
    assert ratio is not None
    shapes = {p.name: _grouped(p) for p in pairs if is_matrix(p.ne)}
    n_full = 2 * sum(prod(p.ne) for p in pairs)
    n_vector_bytes = n_full * 2 - 4 * sum(s.n_elements for s in shapes.values())
    least = n_vector_bytes + sum(s.least_steps * s.step_bytes for s in shapes.values())
    if ratio * n_full < least:
        raise too_small(ratio, "the vectors and the smallest factors", Fraction(least, n_full))
    steps = dict(zip(shapes, spread(ratio * n_full - n_vector_bytes, list(shapes.values())), strict=True))
    planned = []
    for p in pairs:
        ne = stripped_ne(p.ne)
        if p.name not in steps:
            planned.append(Planned(p, WeightSpec.dense(p.name, ne)))
            continue
        ranks = plane_ranks(steps[p.name] * CODE_STEP)
        planned.append(Planned(p, WeightSpec(p.name, ne, n_planes=0, plane_ranks=ranks)))
    return planned


def _grouped(pair: Pair) -> GroupedShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    return GroupedShape(n_in, n_out, prod(experts))


def plan_pruned(pairs: list[Pair], options: Options) -> list[Planned]:
    """What a method that prunes keeps of each matrix: as much as a share of the ratio in proportion to its elements pays for.

    Raises:
        InputError: the ratio is under what the vectors and one entry of each matrix cost.
    """
    ratio, is_seeded = options.budget, options.row.keeps == "random"
    assert ratio is not None
    matrices = [p for p in pairs if is_matrix(p.ne)]
    n_elements = sum(prod(p.ne) for p in matrices)
    n_full = 2 * sum(prod(p.ne) for p in pairs)
    n_vector_bytes = 4 * (n_full // 2 - n_elements)
    planned = []
    for p in pairs:
        ne = stripped_ne(p.ne)
        if not is_matrix(ne):
            planned.append(Planned(p, WeightSpec.dense(p.name, ne)))
            continue
        n_in, n_out, *experts = ne
        share = (ratio * n_full - n_vector_bytes) * n_in * n_out / n_elements
        n_kept = most_kept(int(share), n_out, n_in, is_seeded)
        n_charged = prod(experts) * pruned_bytes(n_kept, n_out, n_in, is_seeded)
        planned.append(Planned(p, WeightSpec.dense(p.name, ne, Type.F16), n_kept=n_kept, n_charged=n_charged))
    if any(p.n_kept == 0 for p in planned):
        raise InputError(
            f"--ratio {shown_ratio(ratio)}: the vectors and the places of what is kept leave some matrix no entry. Use a larger ratio"
        )
    return planned


PLANNERS: Mapping[Kind, Callable[[list[Pair], Options], list[Planned]]] = {
    "stages": plan_stages,
    "groups": plan_groups,
    "pruned": plan_pruned,
}


def is_linear(pair: Pair) -> bool:
    """True for a linear projection of attention or MLP: what a LoRA adapts."""
    return is_matrix(pair.ne) and module_of(pair.name) in ("attn", "mlp")


def plan_best(pairs: list[Pair], options: Options, spectra: Mapping[str, Spectrum]) -> list[Planned]:
    """The specs of all weights by the method `best`: the mixes that together lose least at the ratio.

    Args:
        pairs: the weights that changed.
        options: of the conversion.
        spectra: of those that `is_matrix` admits, by name.

    Raises:
        InputError: the ratio is under what vectors and the smallest factors cost.
    """
    ratio = options.budget
    assert ratio is not None
    n_bytes = ratio * 2 * sum(prod(p.ne) for p in pairs)
    n_vector_bytes = 4 * sum(prod(p.ne) for p in pairs if p.name not in spectra)
    mixes = dict(zip(spectra, choose(list(spectra.values()), ratio, n_bytes, n_vector_bytes), strict=True))
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


def _matrix(pair: Pair, factor_type: str, n_planes: int) -> MatrixShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    u_type, v_type = factor_types(n_in, n_out, FACTOR_TYPES[factor_type])
    return MatrixShape(pair.name, n_in, n_out, prod(experts), u_type, v_type, n_planes)


def _ranks(matrices: list[MatrixShape], pairs: list[Pair], options: Options) -> list[int]:
    if "svd" not in options.row.stages:
        return [0] * len(matrices)
    if options.rank is not None:
        return ranks_fixed(options.rank, matrices)
    ratio = options.budget
    assert ratio is not None
    if options.row.linear_only:
        return ranks_fixed(_rank_of_ratio(ratio, matrices, pairs), matrices)
    n_vector_elements = sum(prod(p.ne) for p in pairs if not is_matrix(p.ne))
    ranks = ranks_of_paper if options.vectors == "paper" else ranks_for_ratio
    return ranks(ratio, matrices, n_vector_elements)


def _rank_of_ratio(ratio: Fraction, matrices: list[MatrixShape], pairs: list[Pair]) -> int:
    """One rank for all matrices; the ratio is to the size of all weights that changed, those that stay the base's too."""
    n_full = 2 * sum(prod(p.ne) for p in pairs)
    rank = rank_within(int(ratio * n_full), matrices)
    if rank == 0:
        raise too_small(ratio, "factors of the lowest rank", Fraction(sum(m.step_bytes for m in matrices), n_full))
    return rank
