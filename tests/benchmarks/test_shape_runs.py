"""bench/support/shape_runs.py: a model from one tensor of each kind, and that such tensors are those that a conversion has."""

from __future__ import annotations

import pytest

from dqrelo_gguf.address import settings
from dqrelo_gguf.model.base import GgufModel
from tests.support.small_shapes import small


def measured(runs, seconds, n_threads, peak_bytes=0):
    return runs.Measured(seconds, 2 * seconds, 0.5, 100, 1000 + peak_bytes, 1000, 10, n_threads)


def test_a_model_is_the_sum_of_its_kinds(bench_module):
    runs, shapes = bench_module("support.shape_runs"), bench_module("support.large_shapes")
    shape = small(bench_module, n_layer=10)
    matrix = shapes.Kind(("attn_q", "attn_output"), (64, 64), in_blocks=True)
    embedding = shapes.Kind(("token_embd",), (400, 64), in_blocks=False)
    assert (matrix.count(shape), embedding.count(shape)) == (20, 1)
    assert (matrix.tensor(), embedding.tensor()) == ("blk.0.attn_q.weight", "token_embd.weight")
    found = {matrix: measured(runs, 3.0, 1, peak_bytes=40), embedding: measured(runs, 7.0, 2, peak_bytes=70)}
    whole = runs.project(shape, found, n_threads=2)
    assert whole.seconds == 20 * 3.0 / 2 + 7.0  # two lanes of matrices, then the embedding with both threads
    assert whole.processor_seconds == 20 * 6.0 + 14.0
    assert (whole.n_read, whole.n_delta_bytes) == (2100, 210)
    assert whole.peak_bytes == 1000 + 2 * 40  # two matrices at once take more than the embedding


def test_large_tensors_are_alone_as_in_the_converter(bench_module):
    runs, shapes = bench_module("support.shape_runs"), bench_module("support.large_shapes")
    every = shapes.kinds(shapes.SHAPES["moe-235b"])
    alone = {k.names[0] for k in every if runs.is_alone(k, every, 2)}
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
    folders = {name: lazy.Checkpoint(shape, 1, is_tuned=name == "tuned") for name in ("base", "tuned")}
    base = tmp_path / "base.gguf"
    with server.serving(folders) as address:
        runs.write_base(f"{address}/base", base)
        found = GgufModel(base).shapes
        assert sum(k.count(shape) for k in shapes.kinds(shape)) == len(found)
        for kind in shapes.kinds(shape):
            assert found[kind.tensor()] == tuple(reversed(kind.dims))
        parts = {
            kind: runs.measure(base, f"{address}/tuned", "paper", kind.tensor(), 1) for kind in shapes.kinds(shape)
        }
        whole = runs.measure(base, f"{address}/tuned", "paper", None, 2)
    projected = runs.project(shape, parts, n_threads=2)
    assert projected.n_delta_bytes == pytest.approx(
        whole.n_delta_bytes, rel=0.1
    )  # Ranks are whole numbers, and small here.
    assert projected.n_read == whole.n_read
    assert all(m.peak_bytes >= m.start_bytes > 0 and m.reading_seconds > 0 for m in parts.values())
    assert runs.Measured.of(whole.as_line()) == whole
