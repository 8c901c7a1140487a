"""The table of bench/bench_lora.py, and the adapters that it makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.lora_gguf import read_lora_gguf


def test_streams_that_did_not_run_at_once_have_no_step(bench_module):
    bench = bench_module("bench_lora")
    settings = bench.settings_of(["x", "y"])
    runs = {s.name: [bench.Run(20.0, 100.0), bench.Run(40.0, 50.0)] for s in settings}
    runs["delta, 1 stream"] = [bench.Run(15.0, 150.0)]
    runs["--lora, 2 adapters, a stream each"] = [bench.Run(6.0, None), bench.Run(9.0, None)]
    lines = bench.table(runs, settings).splitlines()
    assert "| base beside deltas, 1 stream | 75.0 (50.0 to 100.0) | 1.00 | 30.0 | 1.00 |" in lines
    assert "| delta, 1 stream | 150.0 (150.0 to 150.0) | 2.00 | 15.0 | 0.50 |" in lines
    assert "| --lora, 2 adapters, a stream each | - | - | 7.5 | 0.25 |" in lines


def test_a_delta_has_the_factors_of_its_adapter(bench_module, narrow_base: Path, tmp_path: Path):
    random_loras = bench_module("support.random_loras")
    (lora, _), (delta, other) = random_loras.make_loras(tmp_path, narrow_base, 2, 4)
    adapter = read_lora_gguf(lora, GgufModel(narrow_base))
    reader = DeltaReader(delta)
    assert {w.name for w in reader.weights} == set(adapter.factors)
    assert any(name.endswith("ffn_down.weight") for name in adapter.factors)
    for name, factors in adapter.factors.items():
        np.testing.assert_allclose(reader.reconstruct(name), factors.product(), rtol=1e-5, atol=1e-9)
    assert DeltaReader(other).content_hash != reader.content_hash
