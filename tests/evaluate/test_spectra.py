"""Which weights' spectra are measured, and what they are."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.evaluate import spectra
from dqrelo_gguf.evaluate.spectra import choose, kept_numbers, measure_spectra
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.progress import Silent
from tests.support.trio import Trio

LAYERS = {f"blk.{il}.{kind}.weight": (64, 64) for il in range(5) for kind in ("attn_q", "ffn_up")}
SHAPES = {"token_embd.weight": (64, 300), **LAYERS, "output_norm.weight": (64,)}


def test_the_middle_layer_comes_first_then_the_first_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"blk.{il}.{kind}.weight" for il in (0, 2, 4) for kind in ("attn_q", "ffn_up")]
    assert choose(SHAPES, 1).names == ["token_embd.weight", *names]
    monkeypatch.setattr(spectra, "MAX_WEIGHTS", 3)
    chosen = choose(SHAPES, 1)
    assert chosen.names == ["token_embd.weight", "blk.2.attn_q.weight", "blk.2.ffn_up.weight"]
    assert chosen.kinds_left_out == []


def test_what_is_too_large_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "MAX_ELEMENTS", 64 * 64)
    chosen = choose(SHAPES, 1)
    assert "token_embd.weight" not in chosen.names
    assert chosen.kinds_left_out == ["token_embd.weight"]
    monkeypatch.setattr(spectra, "MAX_OPERATIONS", 2 * spectra._operations((64, 64)))
    assert choose(SHAPES, 1).names == ["blk.2.attn_q.weight"]
    assert choose(SHAPES, 1).kinds_left_out == ["token_embd.weight", "blk.*.ffn_up.weight"]
    assert choose(SHAPES, 2).names == []


def test_the_first_singular_values_are_all_kept() -> None:
    assert kept_numbers(10).tolist() == list(range(10))
    kept = kept_numbers(5000)
    assert kept[:16].tolist() == list(range(16))
    assert kept[-1] == 4999
    assert len(kept) < 220


def test_values_are_those_of_delta_and_residual(trio: Trio) -> None:
    base, tuned, readers = GgufModel(trio.base), GgufModel(trio.tuned), [DeltaReader(p) for p in trio.deltas]
    name = "blk.1.ffn_up.weight"
    choice = spectra.Choice([name], [])
    (found,) = measure_spectra(base, tuned, readers, choice, phases=Silent, n_threads=1)
    with open_blocks(1) as blocks:
        D = tuned.load(name, blocks) - base.load(name, blocks)
    kept = np.array(found.numbers) - 1
    assert found.delta == pytest.approx(np.linalg.svd(D, compute_uv=False)[kept], rel=1e-4)
    for reader, residual, error in zip(readers, found.residuals, found.errors, strict=True):
        R = D - reader.reconstruct(name)
        assert residual == pytest.approx(np.linalg.svd(R, compute_uv=False)[kept], rel=1e-3, abs=1e-5)
        stated = next(w.error_delta for w in reader.weights if w.name == name)
        assert error == pytest.approx(stated, rel=1e-3)


def test_a_weight_that_did_not_change_has_no_spectrum(trio: Trio) -> None:
    base = GgufModel(trio.base)
    choice = spectra.Choice(["output.weight"], [])
    assert list(measure_spectra(base, base, [], choice, phases=Silent, n_threads=1)) == []
