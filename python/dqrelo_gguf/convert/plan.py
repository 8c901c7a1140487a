"""What a delta will hold, byte for byte, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Literal

from dqrelo_gguf.compress.budget import (
    VectorMode,
    is_matrix,
)
from dqrelo_gguf.compress.lowrank import SvdMethod
from dqrelo_gguf.compress.mixes import Choice, Spectrum, choose
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
    Method,
    taking,
)
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import ENTRY_TYPES, SparseSpec, Type, WeightSpec, stripped_ne
from dqrelo_gguf.model.adapter import Factors
from dqrelo_gguf.model.pairing import Pair, Selection

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
        by_option = any(option in METHODS[PAPER].takes for option in self.given() if option != RATIO)
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

    def given(self) -> list[str]:
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
        for option in self.given():
            check_takes(self.method_name, option)
        if self.ratio is not None and self.rank is not None:
            raise InputError("ratio and rank: give one of them")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"--rank {self.rank}: must not be negative")
        if not -1 <= self.min_cosine <= 1:  # NaN is in no range.
            raise InputError(f"--min-cosine {self.min_cosine}: must lie between -1 and 1")
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
        return {**self.selection.as_metadata(), **taken}


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
        predicted_error: ||D - D_hat|| / ||D|| by its spectrum, or of its entries; None where that is not known before.
        is_exact: it is not compressed, and its bytes are not those of the method.
        n_kept: entries that pruning keeps of each matrix; None where nothing is pruned.
        n_charged: bytes that it is charged, where those are not the bytes of its tensors.
        factors: of a LoRA adapter, which are stored as they are; None where a delta is compressed.
        n_changed: elements that the fine-tune changed; None where they were not counted.
    """

    pair: Pair
    spec: WeightSpec
    predicted_error: float | None = None
    is_exact: bool = False
    n_kept: int | None = None
    n_charged: int | None = None
    factors: Factors | None = None
    n_changed: int | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that it is charged."""
        return self.spec.n_bytes if self.n_charged is None else self.n_charged


def plan_exact(pair: Pair) -> Planned:
    """A weight that stays the fine-tune's: a matrix in the 16 bits of an uncompressed one."""
    dense_type = Type.F16 if is_matrix(pair.ne) else Type.F32
    spec = WeightSpec.dense(pair.name, stripped_ne(pair.ne), dense_type)
    return Planned(pair, spec, 0.0, is_exact=True)


def plan_best(pairs: list[Pair], options: Options, spectra: Mapping[str, Spectrum]) -> list[Planned]:
    """The specs of all weights by the method `best`: the mixes and sparse forms that together lose least at the ratio.

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
    choices = dict(zip(spectra, choose(list(spectra.values()), ratio, n_bytes, n_vector_bytes), strict=True))
    planned = []
    for p in pairs:
        ne = stripped_ne(p.ne)
        if p.name not in choices:
            planned.append(Planned(p, WeightSpec.dense(p.name, ne), 0.0))
            continue
        spectrum, choice = spectra[p.name], choices[p.name]
        spec = _spec_of(p.name, ne, spectrum, choice)
        planned.append(Planned(p, spec, spectrum.relative_error(choice), n_changed=spectrum.n_changed))
    return planned


def _spec_of(name: str, ne: tuple[int, ...], spectrum: Spectrum, choice: Choice) -> WeightSpec:
    if choice.form is not None:
        form = choice.form
        entry_type = next(t for t, name_of_type in ENTRY_TYPES.items() if name_of_type == form.type)
        return WeightSpec.of_entries(name, ne, SparseSpec(form.n_entries, entry_type, form.has_mask))
    mix = spectrum.mix(choice)
    scale_per_row = mix.n_planes > 0 and mix.scale_per_row
    cscale = scale_per_row and spectrum.with_column_scales
    return WeightSpec(name, ne, mix.n_planes, scale_per_row=scale_per_row, cscale=cscale, plane_ranks=mix.plane_ranks)


def without_forms(spectra: Mapping[str, Spectrum]) -> dict[str, Spectrum]:
    """The spectra with mixes as the only choice: what is kept exactly shows a probe nothing."""
    return {name: replace(s, forms=()) for name, s in spectra.items()}


def weighed(spectra: Mapping[str, Spectrum], measured: Mapping[str, float]) -> dict[str, Spectrum]:
    """The spectra with the geometric mean of their importance and the measured one.

    The probe alone trusts a few hundred tokens too much; the mean loses less on every pair (docs/method.md).
    """
    return {
        name: replace(s, importance=(s.importance * measured[name]) ** 0.5) if name in measured else s
        for name, s in spectra.items()
    }
