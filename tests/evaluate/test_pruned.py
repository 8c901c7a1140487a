"""Pruned deltas are measured by dqrelo-eval itself, as the merged models that dqrelo-convert makes of them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.cli import convert
from dqrelo_gguf.cli.eval import main
from dqrelo_gguf.evaluate.pruned import Pruning, check_prunings
from tests.support.trio import Trio


def report_of(trio: Trio, text_file: Path, out: Path, *options: str | Path) -> dict[str, Any]:
    common = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--ctx", "32", "-t", "1"]
    assert main([str(x) for x in [*common, "--text", text_file, "--json", out, *options]]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_a_pruned_delta_has_the_figures_of_its_merged_model(trio: Trio, tmp_path: Path, text_file: Path) -> None:
    merged = tmp_path / "merged.gguf"
    made = tmp_path / "made.json"
    files = [trio.base, trio.tuned, "-o", merged, "--json", made]
    assert convert.main([str(x) for x in [*files, "--method", "magnitude", "--ratio", "1/4"]]) == 0
    report = report_of(
        trio, text_file, tmp_path / "r.json", "--model", merged, "--pruned", "magnitude:1/4", "--pruned", "random"
    )
    _, _, given, magnitude, drawn = report["text"]["models"]
    assert [m["name"] for m in (given, magnitude, drawn)] == ["merged", "magnitude-1-4", "random-1-8"]
    assert magnitude["kl"]["value"] == given["kl"]["value"] > 0
    assert drawn["kl"]["value"] > magnitude["kl"]["value"]
    rivals = {r["name"]: r for r in report["files"]["rivals"]}
    assert (
        rivals["magnitude-1-4"]["n_bytes"] == json.loads(made.read_text())["n_bytes"] < rivals["merged"]["n_bytes"] / 2
    )
    assert rivals["magnitude-1-4"]["made"] == "the base in F16 with a delta pruned by magnitude to 1/4"
    assert not Path(rivals["magnitude-1-4"]["path"]).exists()


def test_what_weights_multiply_is_measured_once_for_all(
    trio: Trio, tmp_path: Path, text_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = report_of(trio, text_file, tmp_path / "r.json", "--pruned", "wanda", "--rival", "Q8_0")
    assert [m["name"] for m in report["text"]["models"][2:]] == ["Q8_0", "wanda-1-8"]
    assert report["files"]["rivals"][1]["made"].endswith("importance matrix on text that the fine-tune writes")
    assert capfd.readouterr().err.count("measuring an importance matrix") == 1


def test_each_pruning_once() -> None:
    assert check_prunings(("magnitude", "random:1/16", "magnitude:1/8")) == (
        Pruning("magnitude", Fraction(1, 8)),
        Pruning("random", Fraction(1, 16)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "--pruned best: expected one of random, magnitude, wanda, or one with a ratio, such as magnitude:1/8"),
        ("", "--pruned : expected one of"),
        ("magnitude:2", "--ratio 2"),
        ("magnitude:x", "--ratio x"),
    ],
)
def test_one_line(trio: Trio, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--pruned", text]
    assert main([str(x) for x in argv]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"dqrelo-eval: error: {message}")
