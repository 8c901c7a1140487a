"""Conversions that compress some layers or modules: the rest stays the fine-tune's, and is not counted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.model.parts import module_of
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf

RATIO = Fraction(1, 4)
F16_ERROR = 2**-11  # of a number that is rounded to F16


def converted(out: Path, selection: Selection, method: str = "paper", **options: str) -> ConvertResult:
    job = Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out)
    ratio = RATIO if "--ratio" in METHODS[method].takes else None
    return convert(job, Options(method=method, ratio=ratio, selection=selection, **options))  # type: ignore[arg-type]


def errors(result: ConvertResult) -> dict[str, float]:
    return {w.name: w.error_delta for w in result.weights}


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.keeps is None])
def test_only_the_chosen_blocks_are_compressed(method: str, tmp_path: Path) -> None:
    out = tmp_path / "d.dq.gguf"
    result = converted(out, Selection.of(None, None, "50-100%"), method)
    reader, plain, target = DeltaReader(out), read_gguf(pico_gguf("llama")), read_gguf(pico_tuned_gguf("llama"))
    for w in reader.weights:
        D = target[w.name] - plain[w.name]
        error = np.linalg.norm(D - reader.reconstruct(w.name)) / np.linalg.norm(D)
        assert error == pytest.approx(w.error_delta, abs=1e-4)
        if not w.name.startswith("blk.1."):
            assert error <= F16_ERROR, w.name
        elif D.ndim > 1:
            assert 0.08 < error < 1, w.name
    assert {w.name for w in reader.weights} | set(result.not_carried) == set(plain)
    block = [n for n in plain if n.startswith("blk.1.")]
    n_bytes = sum(w.n_bytes for w in reader.weights if w.name in block)
    assert result.n_bytes == n_bytes
    assert result.ratio == pytest.approx(n_bytes / (2 * sum(plain[n].size for n in block)))
    if "--ratio" in METHODS[method].takes:
        assert 0.8 * RATIO < result.ratio <= RATIO
    assert any(line.startswith("exact     ") for line in result.summary())


@pytest.mark.parametrize("module", ["attn", "mlp", "embed"])
def test_only_the_chosen_modules_are_compressed(module: str, tmp_path: Path) -> None:
    found = errors(converted(tmp_path / "d.dq.gguf", Selection.of(None, None, None, module)))
    for name, error in found.items():
        compressed = module_of(name) == module and read_gguf(pico_gguf("llama"))[name].ndim > 1
        assert (error > 0.1) is compressed, name
        assert compressed or error <= F16_ERROR, name


def test_norms_are_compressed_as_the_paper_compresses_vectors(tmp_path: Path) -> None:
    out = tmp_path / "d.dq.gguf"
    found = errors(converted(out, Selection.of(None, None, None, "norm"), vectors="paper"))
    reader = DeltaReader(out)
    for name, error in found.items():
        if module_of(name) == "norm":
            kept = reader.reconstruct(name)
            assert np.count_nonzero(kept) == kept.size // 4, name
            assert error > 0.1, name
        else:
            assert error <= F16_ERROR, name


def test_vectors_outside_of_the_choice_stay_whole(tmp_path: Path) -> None:
    found = errors(converted(tmp_path / "d.dq.gguf", Selection.of(None, None, "0"), vectors="paper"))
    assert found["blk.0.attn_norm.weight"] > 0.1
    assert found["blk.1.attn_norm.weight"] == found["output_norm.weight"] == 0


def test_a_pruned_model_has_the_rest_exact(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    converted(out, Selection.of(None, None, "0"), "magnitude")
    merged, target = read_gguf(out), read_gguf(pico_tuned_gguf("llama"))
    for name, w in target.items():
        error = np.abs(merged[name] - w).max() / np.abs(w).max()
        assert bool(error > 4 * F16_ERROR) is (name.startswith("blk.0.") and w.ndim > 1), name


def test_a_choice_of_weights_comes_first(tmp_path: Path) -> None:
    out = tmp_path / "d.dq.gguf"
    converted(out, Selection.of("attn_q", None, "0"))
    weights = {w.name: w.dense_type for w in DeltaReader(out).weights}
    assert list(weights) == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    assert weights["blk.0.attn_q.weight"] is None
    assert weights["blk.1.attn_q.weight"] is not None
    assert DeltaReader(out).options["layers"] == "0-0"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--layers", "9"],
            "--layers, --modules: no weight that changed is one of these. The base has the blocks 0 to 1",
        ),
        (["--layers", "2-1"], "--layers 2-1: not a range of blocks"),
        (["--modules", "ffn"], "--modules ffn: 'ffn' is no module"),
        (["--modules", "norm"], "--layers, --modules: choose norms and other vectors only, which are kept whole"),
    ],
)
def test_refusals(arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    capsys.readouterr()
    assert main([str(base), str(tuned), "-o", str(tmp_path / "d.dq.gguf"), *arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"dqrelo-convert: error: {reason}")
    assert list(tmp_path.iterdir()) == []
