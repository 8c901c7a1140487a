"""dqrelo-eval against the bundled llama-perplexity on the same text: the same chunks, the same figures."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from dqrelo_gguf.cli import merge
from dqrelo_gguf.cli.eval import main
from dqrelo_gguf.runtime.programs import program
from tests.support.trio import Trio

N_CTX = 64
TOLERANCE = 0.01  # llama-perplexity keeps 16 bits of each log-probability.


def perplexity(model: Path, text: Path, logits: Path, *options: str) -> str:
    command = [
        program("llama-perplexity"),
        "-m",
        model,
        "-f",
        text,
        "-c",
        N_CTX,
        "-t",
        "1",
        "--kl-divergence-base",
        logits,
    ]
    done = subprocess.run(list(map(str, [*command, *options])), capture_output=True, text=True, timeout=300, check=True)
    return done.stdout + done.stderr


def figure(output: str, name: str) -> float:
    """The number behind a name that llama-perplexity prints."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(-?[\d.]+)", output, re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture(scope="module")
def theirs(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What llama-perplexity prints of the coarse delta, merged, and the text."""
    folder = tmp_path_factory.mktemp("perplexity")
    text = folder / "text.txt"
    text.write_text("the dog sees two cats and a </s> sign. 3 + 4 = 7? five and three makes 8. " * 24, encoding="utf-8")
    merged = folder / "merged.gguf"
    assert merge.main([str(trio.base), str(trio.deltas[1]), "-o", str(merged), "--outtype", "f32"]) == 0
    perplexity(trio.tuned, text, folder / "logits")
    return perplexity(merged, text, folder / "logits", "--kl-divergence"), text


def test_figures_agree(theirs: tuple[str, Path], trio: Trio, tmp_path: Path) -> None:
    output, text = theirs
    out = tmp_path / "report.json"
    argv = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[1], "--text", text, "--ctx", N_CTX, "-t", "1"]
    assert main([str(x) for x in [*argv, "--json", out]]) == 0
    report = json.loads(out.read_text())["text"]
    ours = report["models"][1]
    assert report["n_tokens"] == report["n_windows"] * (N_CTX // 2 - 1) > 300

    def agrees(value: float, name: str, unit: float = 1.0) -> None:
        printed = figure(output, name)
        assert value * unit == pytest.approx(printed, rel=TOLERANCE, abs=2e-5 if unit == 1 else 2e-2), name

    agrees(ours["kl"]["value"], "Mean    KLD")
    agrees(ours["kl_max"], "Maximum KLD")
    agrees(ours["kl_median"], "Median  KLD")
    for percent in ("99.9", "99", "95", "90", "10", "5", "1"):
        name = f"{float(percent):4.1f}%   KLD" if float(percent) < 99.9 else "99.9%   KLD"
        agrees(ours["kl_percentiles"][percent], name)
    agrees(report["ppl_tuned"]["value"], "Mean PPL(base)")
    agrees(ours["ppl"]["value"], "Mean PPL(Q)")
    agrees(ours["log_ppl_ratio"]["value"], "Mean ln(PPL(Q)/PPL(base))")
    agrees(ours["dp_mean"]["value"], "Mean    Δp", 100)
    agrees(ours["dp_rms"]["value"], "RMS Δp", 100)
    agrees(ours["same_top"]["value"], "Same top p", 100)


def test_errors_agree(theirs: tuple[str, Path], trio: Trio, tmp_path: Path) -> None:
    output, text = theirs
    out = tmp_path / "report.json"
    argv = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[1], "--text", text, "--ctx", N_CTX, "-t", "1"]
    assert main([str(x) for x in [*argv, "--json", out]]) == 0
    ours = json.loads(out.read_text())["text"]["models"][1]
    for value, name in ((ours["kl"]["error"], "Mean    KLD"), (ours["ppl"]["error"], "Mean PPL(Q)")):
        found = re.search(rf"^{re.escape(name)}\s*:.*±\s*([\d.]+)", output, re.MULTILINE)
        assert found
        assert value == pytest.approx(float(found[1]), rel=TOLERANCE, abs=2e-6)
    printed = re.search(r"^Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:.*±\s*([\d.]+)", output, re.MULTILINE)
    assert printed
    assert ours["log_ppl_ratio"]["error"] == pytest.approx(float(printed[1]), rel=TOLERANCE, abs=2e-6)
