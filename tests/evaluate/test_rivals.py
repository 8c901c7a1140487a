"""Rivals: the fine-tune in few bits, and whole models, are measured as deltas are; what cannot be made is one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.cli import merge
from dqrelo_gguf.cli.eval import main
from dqrelo_gguf.errors import DiskFullError, InputError
from dqrelo_gguf.evaluate import rivals
from dqrelo_gguf.evaluate.rivals import Maker, check_types
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.progress import Silent
from tests.support.trio import Trio


def evaluate(trio: Trio, out: Path, *options: str | Path, delta: str | Path = "") -> dict[str, Any]:
    argv = [
        trio.base,
        "--tuned",
        trio.tuned,
        "--delta",
        delta or trio.deltas[0],
        "--ctx",
        "32",
        "-t",
        "1",
        "--json",
        out,
    ]
    assert main([str(x) for x in [*argv, *options]]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


@pytest.mark.parametrize("sequential", [(), ("--sequential",)], ids=["side by side", "sequential"])
def test_a_merged_delta_has_the_figures_of_the_delta(
    trio: Trio, tmp_path: Path, text_file: Path, sequential: tuple[str, ...]
) -> None:
    merged = tmp_path / "merged.gguf"
    assert merge.main([str(trio.base), str(trio.deltas[0]), "-o", str(merged), "--outtype", "f32"]) == 0
    problems = tmp_path / "p.jsonl"
    problems.write_text("".join(json.dumps({"prompt": p, "answer": "dog"}) + "\n" for p in ("the cat", "two and")))
    asked = ("--text", text_file, "--problems", problems, "--max-tokens", "3")
    report = evaluate(trio, tmp_path / "r.json", "--model", merged, "--model", trio.tuned, *asked, *sequential)
    base, delta, same, tuned = report["text"]["models"]
    assert [m["name"] for m in (base, delta, same, tuned)] == ["base", "fine", "merged", "tuned"]
    assert same["kl"]["value"] == pytest.approx(delta["kl"]["value"], rel=2e-3)
    assert same["kl"]["value"] < base["kl"]["value"]
    assert tuned["kl"]["value"] < 1e-9
    assert tuned["recovered"] == pytest.approx(1)
    scores = {s["name"]: s for s in report["problems"]["tasks"][0]["scores"]}
    assert scores["merged"]["right"] == scores["fine"]["right"]
    assert scores["tuned"]["n_same"] == 2
    assert [d["name"] for d in report["problems"]["deltas"]] == ["fine", "merged", "tuned"]
    assert [r["path"] for r in report["files"]["rivals"]] == [str(merged), str(trio.tuned)]


def test_the_fine_tune_in_few_bits(trio: Trio, tmp_path: Path, text_file: Path) -> None:
    stamped = shutil.copy(trio.deltas[0], tmp_path / "own.dq.gguf")
    types = ("--rival", "q8_0", "--rival", "Q4_0")
    report = evaluate(trio, tmp_path / "r.json", "--text", text_file, *types, "--stamp", delta=stamped)
    _, delta, q8, q4 = report["text"]["models"]
    assert [q8["name"], q4["name"]] == ["Q8_0", "Q4_0"]
    assert 0 < q8["kl"]["value"] < q4["kl"]["value"]
    sizes = {r["name"]: r["n_bytes"] for r in report["files"]["rivals"]}
    plain = sum(info.n_bytes for _, info in GgufModel(trio.tuned).infos.values())
    assert plain > sizes["Q8_0"] > sizes["Q4_0"] > plain // 4
    assert not any(Path(r["path"]).exists() for r in report["files"]["rivals"])
    record = DeltaReader(stamped).quality
    assert record is not None
    assert record["kl"] == pytest.approx(delta["kl"]["value"])


def test_a_measured_importance_matrix_is_used(trio: Trio, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """IQ2_XXS is refused by llama-quantize without one; rows of this model do not fill its blocks, so it falls back, and says so."""
    maker = Maker(GgufModel(trio.base), GgufModel(trio.tuned), tmp_path, 1, 5, None, print, Silent)
    with maker.made(("IQ2_XXS",)) as (rival,):
        assert rival.path.is_file()
        folder = rival.path.parent
        assert (folder / "imatrix.gguf").stat().st_size > 0
        assert "importance matrix on text that the fine-tune writes" in rival.made
    assert not folder.exists()
    assert "measuring an importance matrix" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["Q4", "F16", "../Q4_0", "COPY", ""])
def test_unknown_types(name: str) -> None:
    with pytest.raises(InputError, match=r"--rival .*: is no type of llama-quantize, expected one of .*IQ2_XXS"):
        check_types((name,))


def test_each_type_once() -> None:
    assert check_types(("q2_k", "Q2_K", "IQ3_XXS")) == ("Q2_K", "IQ3_XXS")


def test_no_disk_for_rivals(trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.shutil, "disk_usage", lambda _: rivals.shutil._ntuple_diskusage(10, 9, 1))
    maker = Maker(GgufModel(trio.base), GgufModel(trio.tuned), tmp_path, 1, 5, None, print, Silent)
    with pytest.raises(DiskFullError, match=r"bytes for the rivals, has 1 free. Set TMPDIR"), maker.made(("Q8_0",)):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rival", "Q9"), "--rival Q9: is no type"),
        (("--rival", "Q8_0", "--imatrix", "nowhere"), "--imatrix nowhere: no such file"),
        (("--rival", "Q8_0", "--imatrix", "README.md"), "llama-quantize.*failed"),
        (("--model", "nowhere.gguf"), "nowhere.gguf.*no such file"),
        (("--model", "README.md"), "README.md"),
    ],
)
def test_one_line(
    trio: Trio, text_file: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--ctx", "32", "-t", "1", "--text", text_file]
    assert main([str(x) for x in [*argv, *options]]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert re.search(message, last), last
    assert last.startswith("dqrelo-eval: error: ")
