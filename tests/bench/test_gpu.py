"""dqrelo-bench --gpu-check: what it compares, what it times, and what it says where there is no GPU."""

from __future__ import annotations

import io
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.bench import gpu
from dqrelo_gguf.bench.plan import DeltaFile, Plan, Settings, Workload
from dqrelo_gguf.cli import bench


@pytest.fixture
def plan(narrow_base: Path, narrow_deltas: list[Path]) -> Plan:
    files = tuple(DeltaFile(path.name.removesuffix(".dq.gguf"), str(path)) for path in narrow_deltas)
    return Plan(str(narrow_base), files, (Workload(0, 4),), (Settings(n_threads=1),), n_repetitions=1)


def fake_check(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in the place of the operator's check."""
    path = folder / "dqrelo-op-check"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("DQRELO_BIN_DIR", str(folder))


def test_without_a_gpu_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_check(tmp_path, "echo 'dqrelo-op-check: this build finds no GPU' >&2; exit 1", monkeypatch)
    assert bench.main(["--gpu-check"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "dqrelo-bench: error: this build finds no GPU\n"


def test_a_wrong_operator_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_check(tmp_path, "exit 1", monkeypatch)
    assert bench.main(["--gpu-check"]) == 1
    assert "the operator is wrong on a GPU" in capsys.readouterr().err


def test_without_a_model_only_the_operator_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_check(tmp_path, "exit 0", monkeypatch)
    assert bench.main(["--gpu-check"]) == 0


def test_a_model_is_needed_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["-p", "4"])
    assert ended.value.code == 2
    assert "required: -m/--model" in capsys.readouterr().err


def test_with_everything(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_check(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setattr(gpu, "_need_gpu", lambda _: None)
    deltas = [argument for file in plan.deltas for argument in ("--delta", file.path)]
    assert bench.main(["--gpu-check", "-m", plan.base, *deltas, "-n", "4", "-npl", "1,3", "-r", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # On a machine without GPU both sides of the comparison are the CPU's.
    assert [line for line in lines if line.endswith("| 0.0e+00 |")] == [
        f"| {name} | 0.0e+00 |" for name in ("-", "math", "words")
    ]
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["1", "3"]


def test_logits_that_differ_are_an_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu._logits
    monkeypatch.setattr(gpu, "_need_gpu", lambda _: None)

    def shifted(plan: Plan, n_gpu_layers: int) -> gpu.Logits:
        found = real(plan, 0)
        return found if n_gpu_layers == 0 else [found[0], found[1], found[2] + 0.1 * np.abs(found[2]).max()]

    monkeypatch.setattr(gpu, "_logits", shifted)
    with pytest.raises(gpu.GpuError, match="with delta 'words' the GPU's logits differ"):
        gpu.check_logits(plan, io.StringIO())


def test_nan_is_an_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.full((2, 3), np.nan, np.float32)
    monkeypatch.setattr(gpu, "_need_gpu", lambda _: None)
    monkeypatch.setattr(gpu, "_logits", lambda _, n: [np.ones((2, 3), np.float32) if n == 0 else nothing] * 3)
    with pytest.raises(gpu.GpuError, match="NMSE of nan"):
        gpu.check_logits(plan, io.StringIO())


def test_logits_of_the_cpu_alone_are_no_check(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.core, "machine", lambda: {"gpu_info": ""})
    with pytest.raises(gpu.GpuError, match="finds no GPU"):
        gpu.check_logits(plan, io.StringIO())
    monkeypatch.setattr(gpu.core, "machine", lambda: {"gpu_info": "a GPU"})
    with pytest.raises(gpu.GpuError, match="-ngl 0"):
        gpu.check_logits(replace(plan, settings=(Settings(n_gpu_layers=0),)), io.StringIO())


def test_fewer_deltas_than_streams_are_loaded_again() -> None:
    files = [DeltaFile("a", "a.dq.gguf"), DeltaFile("b", "b.dq.gguf")]
    assert [file.name for file in gpu.copies(files, 5)] == ["a", "b", "a (2)", "b (2)", "a (3)"]
    assert [file.path for file in gpu.copies(files, 3)] == ["a.dq.gguf", "b.dq.gguf", "a.dq.gguf"]
    assert [file.name for file in gpu.copies(files, 1)] == ["a"]


def test_steps(plan: Plan) -> None:
    steps = list(gpu.time_steps(plan, [1, 4]))
    assert [step.n_streams for step in steps] == [1, 4]
    assert all(step.base_ms > 0 and step.delta_ms > 0 for step in steps)
    assert steps[1].delta_bytes > 2 * steps[0].delta_bytes  # Each copy of a delta counts, because it is read once.
    out = io.StringIO()
    gpu.print_steps([gpu.Step(2, 10.0, 15.0, 300, 100)], out)
    assert out.getvalue().splitlines()[-1] == "| 2 | 10.00 | 15.00 | 1.50 | 1.33 |"
