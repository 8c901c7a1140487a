"""bench/support/lazy_model.py, lazy_server.py and large_shapes.py: bytes that do not depend on how they are asked for, and the sizes of known models."""

from __future__ import annotations

import random
from math import prod

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load

from tests.support.small_shapes import small

# Parameters as their makers state them; of the last, the norms of q and k are left out: 94 layers with two of 128 numbers.
PARAMETERS = {
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "moe-235b": 235_093_634_560 - 94 * 2 * 128,
}


@pytest.fixture
def lazy(bench_module, monkeypatch):
    """The module with blocks so small that tensors have several, the last one not whole."""
    module = bench_module("support.lazy_model")
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 64 * 7)
    return module


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_parameters_of_their_models(bench_module, name):
    shapes = bench_module("support.large_shapes")
    shape = shapes.SHAPES[name]
    assert sum(map(prod, shapes.tensors(shape).values())) == PARAMETERS[name]
    norms = sum(dims[0] for dims in shapes.tensors(shape).values() if len(dims) == 1)
    assert sum(k.n_elements * k.count(shape) for k in shapes.kinds(shape)) == PARAMETERS[name] - norms


@pytest.mark.parametrize("sizes", [{}, {"n_expert": 3, "n_expert_used": 2}, {"is_tied": True, "head_dim": 32}])
def test_any_range_is_that_of_the_whole_file(bench_module, lazy, sizes):
    checkpoint = lazy.Checkpoint(small(bench_module, **sizes), seed=1, is_tuned=True, shard_bytes=60_000)
    assert len(checkpoint.shards) > 2
    draw = random.Random(0)  # noqa: S311
    for name, shard in checkpoint.shards.items():
        whole = b"".join(checkpoint.read(name, 0, shard.n_bytes))
        assert len(whole) == checkpoint.size(name)
        spans = [sorted(draw.sample(range(shard.n_bytes + 1), 2)) for _ in range(20)]
        for start, end in [*spans, (0, 1), (7, 9), (shard.n_bytes - 1, shard.n_bytes)]:
            assert b"".join(checkpoint.read(name, start, end)) == whole[start:end]


def test_what_is_kept_is_what_is_made(bench_module, lazy, tmp_path):
    shape = small(bench_module)
    made, kept = (lazy.Checkpoint(shape, 1, is_tuned=True, keep=keep) for keep in (None, tmp_path))
    kept.make_all(n_threads=2)
    (file,) = kept.shards
    whole = b"".join(made.read(file, 0, made.size(file)))
    n_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert n_bytes == sum(tensor.n_bytes for tensor in kept.shards[file].own)
    assert b"".join(kept.read(file, 0, kept.size(file))) == whole
    for path in tmp_path.iterdir():  # It is read from there.
        path.write_bytes(bytes(path.stat().st_size))
    assert b"".join(kept.read(file, 0, kept.size(file))) != whole


def test_files_are_safetensors_of_the_shapes_tensors(bench_module, lazy):
    shape = small(bench_module, n_expert=3, n_expert_used=2)
    checkpoint = lazy.Checkpoint(shape, seed=1, is_tuned=False, shard_bytes=60_000)
    found = {}
    for name, shard in checkpoint.shards.items():
        found |= load(b"".join(checkpoint.read(name, 0, shard.n_bytes)))
    assert {n: tuple(t.shape) for n, t in found.items()} == bench_module("support.large_shapes").tensors(shape)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert checkpoint.n_bytes == sum(s.n_bytes for s in checkpoint.shards.values())


def weight(lazy, bench_module, seed, is_tuned, name="model.layers.1.mlp.up_proj.weight"):
    checkpoint = lazy.Checkpoint(small(bench_module, n_ff=512), seed, is_tuned)
    (file,) = checkpoint.shards
    return load(b"".join(checkpoint.read(file, 0, checkpoint.shards[file].n_bytes)))[name].float().numpy()


def test_a_fine_tune_is_near_its_base_and_no_other(bench_module, lazy):
    base, tuned, other = (weight(lazy, bench_module, *which) for which in ((1, False), (1, True), (2, False)))
    assert np.array_equal(base, weight(lazy, bench_module, 1, is_tuned=False))
    change = np.linalg.norm(tuned - base) / np.linalg.norm(base)
    assert change == pytest.approx(lazy.AMOUNT * 2**0.5, rel=0.1)  # vectors and noise
    assert abs(np.vdot(base, other)) < 0.05 * np.vdot(base, base)
    # The leading vectors hold more than their share: noise alone would have nearly equal ones.
    values = np.linalg.svd(tuned - base, compute_uv=False)
    assert (values[:8] ** 2).sum() > 1.2 * 8 / len(values) * (values**2).sum()


def test_the_server_gives_ranges_as_web_servers_do(bench_module, lazy):
    checkpoint = lazy.Checkpoint(small(bench_module), seed=1, is_tuned=True)
    (file,) = checkpoint.shards
    with bench_module("support.lazy_server").serving({"tuned": checkpoint}) as address:
        found = requests.get(f"{address}/tuned/{file}", headers={"Range": "bytes=5-99"}, timeout=10)
        assert (found.status_code, found.content) == (206, b"".join(checkpoint.read(file, 5, 100)))
        assert found.headers["Content-Range"] == f"bytes 5-99/{checkpoint.n_bytes}"
        assert found.headers["ETag"] == f'"{checkpoint.version}"'
        assert requests.get(f"{address}/tuned/config.json", timeout=10).json()["hidden_size"] == 64
        for path, headers, status in (
            (f"tuned/{file}", {"Range": f"bytes={checkpoint.n_bytes}-{checkpoint.n_bytes + 1}"}, 416),
            ("tuned/other", {}, 404),
            ("tuned", {}, 404),
            ("base/config.json", {}, 404),
        ):
            assert requests.get(f"{address}/{path}", headers=headers, timeout=10).status_code == status
