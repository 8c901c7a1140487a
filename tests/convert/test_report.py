"""report.py: weights summed up by kind and by layer."""

from __future__ import annotations

import pytest

from dqrelo_gguf.convert.report import by_kind, by_layer, kind, layer, total
from dqrelo_gguf.convert.result import WeightResult


def weight(name: str, n_elements: int, error: float, rank: int = 1) -> WeightResult:
    return WeightResult(
        name,
        ne=(n_elements,),
        n_vectors=rank,
        n_planes=1,
        n_bytes=n_elements // 4,
        cosine=1.0,
        error_delta=error,
        error_weight=error / 10,
    )


def test_kind_and_layer_of_a_name() -> None:
    assert kind("blk.12.attn_q.weight") == "blk.*.attn_q.weight"
    assert kind("token_embd.weight") == "token_embd.weight"
    assert layer("blk.12.attn_q.weight") == 12
    assert layer("token_embd.weight") is None


def test_groups_sum_up() -> None:
    weights = [weight("blk.10.a", 100, 0.3), weight("blk.2.a", 300, 0.1, rank=5), weight("output.weight", 8, 0.0)]
    a, output = by_kind(weights)
    assert (a.label, a.n_weights, a.n_bytes, a.vectors) == ("blk.*.a", 2, 100, (1, 5))
    assert a.error_delta == pytest.approx(((0.09 * 100 + 0.01 * 300) / 400) ** 0.5)
    assert output.error_delta == 0
    assert [g.label for g in by_layer(weights)] == ["2", "10", "other"]
    assert total(weights).ratio == 102 / 816
