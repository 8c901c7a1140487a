"""bench/support/shape_runs.py: a model from one tensor of each kind, and that such tensors are those that a conversion has."""

from __future__ import annotations

import re

import pytest

from dqrelo_gguf.address import settings
from dqrelo_gguf.model.base import GgufModel
from tests.support.small_shapes import small


def measured(runs, seconds, n_weights, peak_bytes):
    return runs.Measured(seconds, 2 * seconds, 0.5, 100, peak_bytes, 1000, 10, n_weights)


def test_a_model_is_the_sum_of_its_kinds(bench_module):
    runs, shapes = bench_module("support.shape_runs"), bench_module("support.large_shapes")
    shape = small(bench_module, n_layer=10)
    matrix = shapes.Kind(("attn_q", "attn_output"), (64, 64), in_blocks=True)
    embedding = shapes.Kind(("token_embd",), (400, 64), in_blocks=False)
    assert (matrix.count(shape), embedding.count(shape)) == (20, 1)
    found = {matrix: measured(runs, 3.0, 4, 1040), embedding: measured(runs, 7.0, 1, 1070)}
    whole = runs.project(shape, found)
    assert whole.seconds == 20 * 3.0 / 4 + 7.0
    assert whole.processor_seconds == 2 * whole.seconds
    assert (whole.n_read, whole.n_delta_bytes) == (600, 60)
    assert whole.peak_bytes == 1070


def test_large_tensors_are_alone_as_in_the_converter(bench_module):
    runs, shapes = bench_module("support.shape_runs"), bench_module("support.large_shapes")
    every = shapes.kinds(shapes.SHAPES["moe-235b"])
    alone = {k.names[0] for k in every if not runs.Part.of(k, every, 2).side_by_side}
    assert alone == {"token_embd", "ffn_gate_exps", "ffn_down_exps"}


@pytest.mark.parametrize(
    "sizes",
    [{}, {"is_tied": True}, {"n_expert": 4, "n_expert_used": 2, "head_dim": 32}],
)
def test_kinds_are_the_tensors_of_a_converted_model(bench_module, tmp_path, monkeypatch, sizes):
    """One of each is converted, and their sum is the delta of the whole model with its share."""
    runs, shapes = bench_module("support.shape_runs"), bench_module("support.large_shapes")
    lazy, server = bench_module("support.lazy_model"), bench_module("support.lazy_server")
    monkeypatch.setenv(settings.CACHE, str(tmp_path / "cache"))
    for name in (settings.OFFLINE, settings.HUB_OFFLINE):
        monkeypatch.delenv(name, raising=False)
    shape = small(bench_module, **sizes)
    tuned = lazy.Checkpoint(shape, 1, is_tuned=True, keep=tmp_path)
    base = tmp_path / "base.gguf"
    with server.serving({"base": lazy.Checkpoint(shape, 1, is_tuned=False), "tuned": tuned}) as address:
        runs.write_base(f"{address}/base", base)
        found = {name: ne for name, ne in GgufModel(base).shapes.items() if len(ne) > 1}
        parts = {}
        for kind in shapes.kinds(shape):
            own = {name for name in found if re.search(kind.pattern(only_one=False), name)}
            assert len(own) == kind.count(shape)
            assert {found.pop(name) for name in own} == {tuple(reversed(kind.dims))}
            parts[kind] = runs.measure(
                base, f"{address}/tuned", "paper", runs.Part(pattern=kind.pattern(only_one=True)), 2
            )
            assert parts[kind].n_weights == 1
        assert not found
        whole = runs.measure(base, f"{address}/tuned", "paper", runs.Part(), 2)
    projected = runs.project(shape, parts)
    assert projected.n_delta_bytes == pytest.approx(
        whole.n_delta_bytes, rel=0.15
    )  # Ranks are whole numbers, small here, and norms are not in it.
    assert projected.n_read == pytest.approx(whole.n_read, rel=0.05)
    # The kernel adds pages to its two counts now and then, so the peak can be some pages below the present.
    assert all(m.peak_bytes >= 0.99 * m.start_bytes > 0 and m.reading_seconds > 0 for m in parts.values())
    assert runs.Measured.of(whole.as_line()) == whole


def test_ratios_of_the_best_method_are_those_of_the_whole(bench_module, tmp_path, monkeypatch):
    ratios, runs, shapes = (bench_module(f"support.{name}") for name in ("shape_ratios", "shape_runs", "large_shapes"))
    lazy, server = bench_module("support.lazy_model"), bench_module("support.lazy_server")
    monkeypatch.setenv(settings.CACHE, str(tmp_path / "cache"))
    for name in (settings.OFFLINE, settings.HUB_OFFLINE):
        monkeypatch.delenv(name, raising=False)
    whole = small(bench_module, n_layer=3)
    folders = {name: lazy.Checkpoint(whole, 1, is_tuned=name == "tuned") for name in ("base", "tuned")}
    base = tmp_path / "base.gguf"
    with server.serving(folders) as address:
        runs.write_base(f"{address}/base", base)
        found = ratios.best_ratios(base, f"{address}/tuned", whole, runs.RATIO, 2)
        measured = runs.measure(base, f"{address}/tuned", "best", runs.Part(), 2)
    matrices = {kind.names[0]: kind.n_elements * kind.count(whole) for kind in shapes.kinds(whole)}
    assert found.keys() == matrices.keys()
    assert len(set(found.values())) > 1  # Bytes go where they do most.
    vectors = 4 * sum(dims[0] for dims in shapes.tensors(whole).values() if len(dims) == 1)
    n_bytes = vectors + sum(2 * found[name] * n for name, n in matrices.items())
    assert float(n_bytes) == pytest.approx(measured.n_delta_bytes, rel=0.02)
