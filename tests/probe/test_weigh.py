"""The probe: classes of weights whose errors move the answers count, those that nothing reads do not; nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.probe import tuned_model, weigh
from tests.support.models import pico_gguf, pico_tuned, pico_tuned_gguf


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.dq.gguf"


def test_every_matrix_is_weighed(out: Path) -> None:
    found: dict[str, float] = {}

    def spy(work: Work, planned: list[Planned]) -> dict[str, float]:
        found.update(weigh.measured_importance(work, planned))
        return found

    result = convert(Job(pico_gguf("llama"), pico_tuned("llama"), out), Options(importance="probe"), weigh=spy)
    matrices = {p.spec.name for p in result.planned if p.spec.dense_type is None}
    assert set(found) == matrices
    assert all(value > 0 for value in found.values())
    # Every answer passes through the output matrix.
    assert found["output.weight"] > 1e-2 * max(found.values())
    assert DeltaReader(out).options["importance"] == "probe"
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name]


def test_threads_do_not_change_a_byte(out: Path) -> None:
    files = []
    for n_threads in ("1", "2"):
        arguments = [str(pico_gguf("llama-tied")), str(pico_tuned_gguf("llama-tied")), "-o", str(out), "--force"]
        assert main([*arguments, "--importance", "probe", "-t", n_threads]) == 0
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_the_probe_moves_bytes(out: Path, tmp_path: Path) -> None:
    sizes = []
    for importance in ("norm", "probe"):
        report = tmp_path / f"{importance}.json"
        arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--force"]
        assert main([*arguments, "--importance", importance, "--json", str(report)]) == 0
        sizes.append([w["n_bytes"] for w in json.loads(report.read_text())["weights"]])
    assert sizes[0] != sizes[1]
    assert sum(sizes[0]) == pytest.approx(sum(sizes[1]), rel=0.02)


def test_without_room_it_is_one_line(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuned_model, "SPARE_BYTES", 1 << 60)
    arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--importance", "probe"]
    assert main(arguments) == 1
    assert "error: the probe needs" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_it_needs_a_runtime_and_the_method_best(out: Path) -> None:
    with pytest.raises(InputError, match="needs the runtime"):
        convert(Job(pico_gguf("llama"), pico_tuned("llama"), out), Options(importance="probe"))
    with pytest.raises(InputError, match="--importance probe: cannot go with --method paper, belongs to --method best"):
        Options(importance="probe", method="paper")
