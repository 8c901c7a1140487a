"""The graph pass on graphs made by hand; tests/cpp/graph/test-graph-pass.cpp makes and judges them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from tests.support import exact_delta
from tests.support.programs import need_test_program
from tests.support.tiny_llama import Shape, base_weights, write_model


def test_the_pass_on_graphs_made_by_hand(tmp_path: Path) -> None:
    shape = Shape(n_embd=64, n_layer=1, n_ff=64)
    weights = base_weights(shape) | {"blk.0.attn_q.scale": np.array([0.5], np.float32)}
    base, delta = write_model(tmp_path / "base.gguf", shape, weights), tmp_path / "a.dq.gguf"
    exact_delta.make(base, delta, tmp_path / "a.gguf", unchanged=weights.keys() - {"blk.0.attn_q.weight"})
    done = subprocess.run(
        [need_test_program("test-graph-pass"), base, delta], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
