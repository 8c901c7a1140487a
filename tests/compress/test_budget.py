"""ratio: ranks from one byte budget, from the paper's equation, and fixed."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import pytest

from dqrelo_gguf.compress.budget import (
    MatrixShape,
    VectorMode,
    factor_types,
    is_matrix,
    parse_ratio,
    ranks_for_ratio,
    ranks_of_paper,
)
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.planners import plan_stages
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import WeightSpec, delta_ratio
from dqrelo_gguf.model.pairing import Pair

# SmolLM2-135M has a tied embedding, and rows of 576 and 1536.
SMOL = {
    "token_embd.weight": (576, 49152),
    "output_norm.weight": (576,),
    **{
        f"blk.{i}.{name}.weight": ne
        for i in range(30)
        for name, ne in {
            "attn_norm": (576,),
            "attn_q": (576, 576),
            "attn_k": (576, 192),
            "attn_v": (576, 192),
            "attn_output": (576, 576),
            "ffn_norm": (576,),
            "ffn_gate": (576, 1536),
            "ffn_up": (576, 1536),
            "ffn_down": (1536, 576),
        }.items()
    },
}


def planned(shapes: dict[str, tuple[int, ...]], options: Options) -> list[Planned]:
    return plan_stages([Pair(name, ne, name) for name, ne in shapes.items()], options)


def ratio_of(plans: list[Planned]) -> float:
    return delta_ratio([p.spec for p in plans])


@pytest.mark.parametrize(
    ("text", "value"), [("1/8", Fraction(1, 8)), ("0.125", Fraction(1, 8)), ("3/32", Fraction(3, 32))]
)
def test_parse_ratio(text: str, value: Fraction) -> None:
    assert parse_ratio(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "0", "-1/8", "1", "8", "nan", "1/8/2"])
def test_parse_ratio_refuses(text: str) -> None:
    with pytest.raises(InputError, match="--ratio"):
        parse_ratio(text)


@pytest.mark.parametrize("ratio", ["1/8", "0.07", "3/32", "1/4", "1/2", "0.9"])
@pytest.mark.parametrize("factor_type", ["f16", "q8_0", "q4_0"])
def test_budget_is_met_and_used(ratio: str, factor_type: str) -> None:
    wanted = parse_ratio(ratio)
    plans = planned(SMOL, Options(method="paper", ratio=wanted, factor_type=factor_type))
    reached = ratio_of(plans)
    assert reached <= wanted
    # What is left would not buy the smallest step of rank anywhere.
    left = (float(wanted) - reached) * 2 * sum(prod(ne) for ne in SMOL.values())
    steps = [
        MatrixShape(p.spec.name, *p.spec.ne, 1, *factor_types(*p.spec.ne, factor_type.upper()))
        for p in plans
        if p.spec.n_planes and p.spec.rank < min(p.spec.ne)
    ]
    assert not steps or left < max(m.step_bytes for m in steps)


def test_every_matrix_gets_its_share() -> None:
    plans = planned(SMOL, Options(method="paper"))
    shares = [delta_ratio([p.spec]) for p in plans if p.spec.n_planes]
    assert min(shares) > 0.12
    assert max(shares) < 0.13


def test_surplus_of_full_ranks_goes_on() -> None:
    shapes = {"a": (64, 64), "b": (4096, 4096)}
    plans = planned(shapes, Options(method="paper", ratio=Fraction(9, 10)))
    assert plans[0].spec.rank <= 64
    assert 0.89 < ratio_of(plans) <= 0.9
    full = planned({"a": (64, 4096)}, Options(method="paper", ratio=Fraction(99, 100)))
    assert full[0].spec.rank <= 64


def test_ratio_under_the_cost_of_the_signs_is_refused() -> None:
    with pytest.raises(InputError, match=r"sign bits, scales and vectors alone cost .* at least 0\.06\d+"):
        planned(SMOL, Options(method="paper", ratio=Fraction(1, 20)))


def test_least_ratio_of_the_message_is_accepted() -> None:
    with pytest.raises(InputError) as e:
        planned(SMOL, Options(method="paper", ratio=Fraction(1, 20)))
    least = parse_ratio(str(e.value).rsplit(maxsplit=1)[-1])
    assert ratio_of(planned(SMOL, Options(method="paper", ratio=least))) <= least
    with pytest.raises(InputError):
        planned(SMOL, Options(method="paper", ratio=least - Fraction(1, 50000)))


def test_paper_equation() -> None:
    n, m = 4096, 14336
    matrix = MatrixShape("w", n, m, 1, "F16", "F16")
    assert ranks_of_paper(Fraction(1, 8), [matrix], 0) == [int((1 / 16) * n * m / (n + m))]
    assert ranks_of_paper(Fraction(1, 16) + Fraction(1, 100000), [matrix], 0) == [0]
    with pytest.raises(InputError, match="the sign bits, scales and vectors alone cost"):
        ranks_of_paper(Fraction(1, 16), [matrix], 0)


@pytest.mark.parametrize("factor_type", ["f16", "f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("vectors", ["whole", "paper"])
@pytest.mark.parametrize(
    "shapes", [SMOL, {"exps": (64, 96, 8)}, {"w": (64, 64), "bias": (64,)}], ids=["SmolLM2", "experts", "a bias"]
)
def test_a_ratio_is_a_limit(shapes: dict[str, tuple[int, ...]], vectors: VectorMode, factor_type: str) -> None:
    """The paper's equations count neither scales nor vectors, and a factor's number as 16 bits."""
    for wanted in (Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)):
        plans = planned(shapes, Options(ratio=wanted, method="paper", vectors=vectors, factor_type=factor_type))
        assert ratio_of(plans) <= wanted


def test_paper_equation_through_options() -> None:
    """Scales and vectors take less than 1 % of the delta, and no more from the ranks."""
    for p in planned(SMOL, Options(vectors="paper")):
        if p.spec.n_planes:
            n_in, n_out = p.spec.ne
            equation = n_in * n_out / 16 / (n_in + n_out)
            assert 0.99 * equation - 1 < p.spec.rank <= equation


def test_rank_is_capped_by_the_matrix() -> None:
    plans = planned({"a": (64, 64), "b": (4096, 512)}, Options(ratio=None, rank=100))
    assert [p.spec.rank for p in plans] == [64, 100]


def test_rank_must_fill_the_blocks_of_the_factors() -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        planned({"a": (64, 64)}, Options(ratio=None, rank=10, factor_type="q8_0"))


@pytest.mark.parametrize(
    ("ne", "expected"),
    [
        ((64, 64), True),
        ((64, 64, 1, 1), True),
        ((64, 64, 8), True),
        ((64,), False),
        ((4096, 1), False),
        ((1, 4096), False),
        ((60, 4096), False),  # Its rows are no whole bytes of signs.
        ((16, 32), False),  # It is under MIN_ELEMENTS.
        ((8, 8, 8, 64), False),
    ],
)
def test_which_weights_have_signs(ne: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(ne) is expected


def test_odd_rows_fall_back_to_f16_factors() -> None:
    assert factor_types(576, 1536, "Q8_0") == ("Q8_0", "Q8_0")
    assert factor_types(72, 1536, "Q8_0") == ("Q8_0", "F16")
    assert factor_types(64, 16, "Q4_0") == ("F16", "Q4_0")


def test_experts_are_counted() -> None:
    plans = planned({"exps": (64, 96, 8)}, Options(method="paper"))
    spec = plans[0].spec
    assert isinstance(spec, WeightSpec)
    assert spec.rank > 0
    assert ratio_of(plans) <= 1 / 8


def test_ratio_and_rank_exclude_each_other() -> None:
    with pytest.raises(InputError, match="one of them"):
        Options(ratio=Fraction(1, 8), rank=4)
    with pytest.raises(InputError, match="--rank -1"):
        Options(ratio=None, rank=-1)
    with pytest.raises(InputError, match="--vectors paper"):
        Options(ratio=None, rank=4, vectors="paper")


def test_ranks_for_ratio_without_matrices() -> None:
    assert ranks_for_ratio(Fraction(1, 2), [], 0) == []
