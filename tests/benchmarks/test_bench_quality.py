"""bench/bench_quality.py from models to tables, and what it refuses."""

from __future__ import annotations

import json
import sys

from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model


def test_candidates_of_every_kind_are_measured_and_told(bench_module, tmp_path, monkeypatch, capsys):
    program = bench_module("bench_quality")
    monkeypatch.setattr(bench_module("support.kept"), "MAX_ANSWER_TOKENS", 4)
    weights = base_weights(NARROW)
    base = write_model(tmp_path / "base.gguf", NARROW, weights, Type.F16)
    tuned = write_model(tmp_path / "tuned.gguf", NARROW, tuned_weights(weights, 0), Type.F16)
    sizes = ["--ratio", "1/4", "--ratio", "1/20"]
    methods = ["--method", "base", "--method", "paper", "--method", "svd", "--method", "Q2_K"]
    out = ["--json", str(tmp_path / "rows.json"), "--work", str(tmp_path / "work"), "--problems", "4"]
    monkeypatch.setattr(
        sys, "argv", ["bench_quality.py", "--base", str(base), "--tuned", f"words={tuned}", *sizes, *methods, *out]
    )
    assert program.main() == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(r["method"], r["asked"]) for r in rows] == [
        ("base", None), ("Q2_K", None), ("paper", "1/4"), ("svd", "1/4"), ("svd", "1/20"),
    ]  # fmt: skip
    kl = {(r["method"], r["asked"]): r["kept"]["kl_all"]["value"] for r in rows}
    assert 0 < kl["svd", "1/4"] < kl["svd", "1/20"] < kl["base", None]
    told = capsys.readouterr()
    assert "words, F16 base: 4 problems" in told.out
    assert "words paper 1/20: --ratio 1/20: the sign bits" in told.err


def test_a_fine_tune_without_a_task_is_refused_before_any_work(bench_module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_quality.py", "--base", "b", "--tuned", "poems=p"])
    assert bench_module("bench_quality").main() == 1
    assert "--tuned poems=: expected one of math, json, words" in capsys.readouterr().err
