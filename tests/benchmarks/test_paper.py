"""bench/paper.py from models to tables: every study's conversions, the paper's figures beside them."""

from __future__ import annotations

import json
import sys

import pytest

from dqrelo_gguf.file.container import GGUFValue, ValueType
from tests.support.delta_files import Edited
from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_studies_are_measured_told_and_gone_on_with(bench_module, tmp_path, monkeypatch, capsys):
    program = bench_module("paper")
    monkeypatch.setattr(program, "MAX_TOKENS", 4)
    weights = base_weights(NARROW)
    base = write_model(tmp_path / "base.gguf", NARROW, weights, Type.F16)
    plain = Edited(write_model(tmp_path / "plain.gguf", NARROW, tuned_weights(weights, 0), Type.F16))
    plain.fields["tokenizer.chat_template"] = GGUFValue(TEMPLATE, ValueType.STRING)
    tuned = plain.save(tmp_path / "tuned.gguf")
    out = tmp_path / "paper.json"
    argv = ["paper.py", "--base", base, "--tuned", f"words={tuned}", "--problems", "4", "--json", out]
    argv += ["--work", tmp_path / "work", "--study", "order", "--study", "modules"]
    monkeypatch.setattr(sys, "argv", [str(x) for x in argv])
    assert program.main() == 0
    tables, notes = capsys.readouterr()
    found = json.loads(out.read_text())["fine_tunes"]["words"]
    assert set(found["converted"]) == {
        e.key
        for e in bench_module("support.paper_tables").unique(
            bench_module("support.paper_studies").STUDIES[name] for name in ("order", "modules")
        )
    }
    kl = {m["name"]: m["kl"]["value"] for m in found["report"]["text"]["models"]}
    assert 0 < kl["method-paper-ratio-1-8"] < kl["method-bitdelta"] < kl["base"]
    assert 0 < kl["method-paper-ratio-1-8-vectors-paper-modules-norm"] < kl["method-paper-ratio-1-8"]
    assert "| one bit, then svd |" in tables
    assert "| 6.17 |" in tables
    assert "### Statistics of the deltas (Table 1)" in tables
    assert "# words: " in notes
    assert program.main() == 0
    again, notes = capsys.readouterr()
    assert again == tables
    assert "# words: " not in notes


def test_what_cannot_be_made_is_a_dash(bench_module):
    studies, tables = bench_module("support.paper_studies"), bench_module("support.paper_tables")
    row = tables.Measured(0.125, 10, (0.1234, 0.01), 0.987, 3, (0.5, 0.25, 0.75))
    lora = studies.STUDIES["lora"]
    found = {"math": {lora.entries[0].key: row, lora.entries[1].key: tables.Measured(0.1, 9, (1.0, 0.5), 0.5, 0, None)}}
    text = tables.study_table(lora, found, {"math": tables.Zero(2.5, 0, 4, 4)})
    assert "| lora | 0.1250; 0.12 ± 0.01; 98.7 %; 3; 50 % (25 to 75) | 50.0 | 62.09 |" in text
    assert "| svd | 0.1000; 1 ± 0.5; 50.0 %; 0; no gain | - | 51.81 |" in text
    assert "| paper | - | - | 71.12 |" in text
    assert "math (base KL 2.50, 0 right; fine-tune 4 of 4)" in text


def test_a_fine_tune_without_a_task_is_refused_before_any_work(bench_module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paper.py", "--base", "b", "--tuned", "poems=p"])
    assert bench_module("paper").main() == 1
    assert "--tuned poems=: expected one of math, json, words" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["methods", "order", "ratios", "lora", "layers", "modules"])
def test_options_of_every_study_are_the_converters(bench_module, name):
    """An option that the converter does not know would only be seen as a dash in a table."""
    from dqrelo_gguf.cli.convert import _parser

    for entry in bench_module("support.paper_studies").STUDIES[name].entries:
        parsed = _parser().parse_args(["base", "ft", "-o", "out", *entry.options])
        assert parsed.method == entry.method
