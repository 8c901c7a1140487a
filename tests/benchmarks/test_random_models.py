"""bench/make_llama_1b.py and bench/support/random_models.py: a base, fine-tunes with the spectrum that is asked for, and deltas."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.file.reader import DeltaReader

SHAPE = ["--layers", "1", "--width", "128", "--ff", "256", "--heads", "2", "--vocab", "384"]
MATRIX = "blk.0.ffn_up.weight"


@pytest.fixture
def make(bench_module, tmp_path, monkeypatch):
    program = bench_module("make_llama_1b")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_llama_1b.py", "-o", str(tmp_path), *SHAPE, *arguments])
        assert program.main() == 0
        return tmp_path

    return run


def values(path, name):
    return next(t.data for t in gguf.GGUFReader(path).tensors if t.name == name).astype(np.float32)


def change(folder, exponent, name):
    return values(folder / f"tuned-{exponent}-f16.gguf", name) - values(folder / "base-f16.gguf", name)


def test_a_fine_tune_has_the_spectrum_that_is_asked_for(make):
    folder = make("--tuned", "0", "--tuned", "0.7")
    for exponent in ("0", "0.7"):
        assert not change(folder, exponent, "blk.0.attn_norm.weight").any()
        size = change(folder, exponent, MATRIX).std() / values(folder / "base-f16.gguf", MATRIX).std()
        assert size == pytest.approx(0.05, rel=0.02)
    flat, falling = (np.linalg.svd(change(folder, e, MATRIX), compute_uv=False) for e in ("0", "0.7"))
    assert flat[0] / flat[31] < 1.6  # as of a Gaussian matrix
    slope = np.polyfit(np.log(np.arange(2, 33)), np.log(falling[1:32]), 1)[0]
    assert slope == pytest.approx(-0.7, abs=0.15)


def test_a_second_run_adds_what_is_missing(make, capsys):
    folder = make("--deltas", "1")
    first = (folder / "delta-00.dq.gguf").read_bytes()
    make("--deltas", "2", "--tuned", "0")
    assert f"{folder / 'base-f16.gguf'}: exists, kept" in capsys.readouterr().out
    assert (folder / "delta-00.dq.gguf").read_bytes() == first
    assert sorted(p.name for p in folder.iterdir()) == [
        "base-f16.gguf",
        "delta-00.dq.gguf",
        "delta-01.dq.gguf",
        "tuned-0-f16.gguf",
    ]
    DeltaReader(folder / "delta-01.dq.gguf").check_base(folder / "base-f16.gguf")
