"""What each weight is stored as, by the methods that share a ratio out by elements or have one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import prod

from dqrelo_gguf.compress.budget import (
    MatrixShape,
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
from dqrelo_gguf.compress.mixes import CODE_STEP
from dqrelo_gguf.compress.pruning import most_kept, pruned_bytes
from dqrelo_gguf.convert.methods import Kind
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import Type, WeightSpec, stripped_ne
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.parts import module_of


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
    planned = {}
    for p in (p for p in carried if p.name in ranks):
        u_type, v_type = types[p.name]
        spec = WeightSpec(p.name, stripped_ne(p.ne), n_planes, rank=ranks[p.name], u_type=u_type, v_type=v_type)
        planned[p.name] = Planned(p, spec)
    return _in_order(carried, planned)


def plan_groups(pairs: list[Pair], options: Options) -> list[Planned]:
    """The specs of all weights in singular vectors of several bits, as many as each one's share of the ratio pays for.

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
    planned = {}
    for p in (p for p in pairs if p.name in steps):
        ranks = plane_ranks(steps[p.name] * CODE_STEP)
        planned[p.name] = Planned(p, WeightSpec(p.name, stripped_ne(p.ne), n_planes=0, plane_ranks=ranks))
    return _in_order(pairs, planned)


def _grouped(pair: Pair) -> GroupedShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    return GroupedShape(n_in, n_out, prod(experts))


def plan_pruned(pairs: list[Pair], options: Options) -> list[Planned]:
    """What a method that prunes keeps of each matrix: as much as its share of the ratio, by elements, pays for.

    Raises:
        InputError: the ratio is under what the vectors and one entry of each matrix cost.
    """
    ratio, is_seeded = options.budget, options.row.keeps == "random"
    assert ratio is not None
    matrices = [p for p in pairs if is_matrix(p.ne)]
    n_elements = sum(prod(p.ne) for p in matrices)
    n_full = 2 * sum(prod(p.ne) for p in pairs)
    n_vector_bytes = 4 * (n_full // 2 - n_elements)
    planned = {}
    for p in matrices:
        n_in, n_out, *experts = ne = stripped_ne(p.ne)
        share = (ratio * n_full - n_vector_bytes) * n_in * n_out / n_elements
        n_kept = most_kept(int(share), n_out, n_in, is_seeded)
        n_charged = prod(experts) * pruned_bytes(n_kept, n_out, n_in, is_seeded)
        spec = WeightSpec.dense(p.name, ne, Type.F16)
        planned[p.name] = Planned(p, spec, n_kept=n_kept, n_charged=n_charged)
    if any(p.n_kept == 0 for p in planned.values()):
        raise InputError(
            f"--ratio {shown_ratio(ratio)}: the vectors and the places of what is kept leave some matrix no entry. "
            "Use a larger ratio"
        )
    return _in_order(pairs, planned)


def is_linear(pair: Pair) -> bool:
    """True for a linear projection of attention or MLP: what a LoRA adapts."""
    return is_matrix(pair.ne) and module_of(pair.name) in ("attn", "mlp")


def _matrix(pair: Pair, factor_type: str, n_planes: int) -> MatrixShape:
    n_in, n_out, *experts = stripped_ne(pair.ne)
    u_type, v_type = factor_types(n_in, n_out, FACTOR_TYPES[factor_type])
    return MatrixShape(pair.name, n_in, n_out, prod(experts), u_type, v_type, n_planes)


def _ranks(matrices: list[MatrixShape], pairs: list[Pair], options: Options) -> list[int]:
    if "svd" not in options.row.stages or not matrices:
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


def _in_order(pairs: list[Pair], of_matrices: Mapping[str, Planned]) -> list[Planned]:
    """The plans in the order of the pairs; what is no matrix is kept whole."""
    return [
        of_matrices[p.name] if p.name in of_matrices else Planned(p, WeightSpec.dense(p.name, stripped_ne(p.ne)))
        for p in pairs
    ]


# By kind of method; `best` measures first (plan.py).
PLANNERS: Mapping[Kind, Callable[[list[Pair], Options], list[Planned]]] = {
    "stages": plan_stages,
    "groups": plan_groups,
    "pruned": plan_pruned,
}
