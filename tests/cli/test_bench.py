"""dqrelo-bench: what its options measure, what it prints, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.bench import run
from dqrelo_gguf.bench.plan import Plan, Settings
from dqrelo_gguf.bench.run import Row
from dqrelo_gguf.bench.traffic import Traffic
from dqrelo_gguf.cli import bench
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.tiny_llama import NARROW, Type, base_weights, weight_shapes, write_model


@pytest.fixture(scope="module")
def options(narrow_base: Path, narrow_deltas: list[Path]) -> list[str]:
    """Two deltas, every kind of test, two numbers of threads."""
    files = [text for path in narrow_deltas for text in ("--delta", str(path))]
    return [
        "-m",
        str(narrow_base),
        *files,
        *["-p", "8", "-n", "3", "-pg", "5,2", "-npl", "1,2", "-npl", "3", "-r", "3", "-t", "1,2"],
    ]


@pytest.fixture(scope="module")
def documents(options: list[str]) -> list[dict[str, Any]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert bench.main([*options, "-o", "json"]) == 0
    found: list[dict[str, Any]] = json.loads(out.getvalue())
    return found


def test_every_test_has_its_rows(documents: list[dict[str, Any]]) -> None:
    got = [(d["n_threads"], d["n_prompt"], d["n_gen"], d["n_streams"], d["deltas"]) for d in documents]
    alone: list[list[str]] = [[], ["math"], ["words"]]
    single = [(n, *test, 1, d) for n in (1, 2) for test in ((8, 0), (0, 3), (5, 2)) for d in alone]
    together = [(n, 0, 3, streams, d) for streams in (2, 3) for n in (1, 2) for d in ([], ["math", "words"])]
    assert got == single + together


def test_json_has_llama_benchs_fields_and_the_deltas(
    documents: list[dict[str, Any]], narrow_base: Path, narrow_deltas: list[Path]
) -> None:
    assert {tuple(d) for d in documents} == {
        (
            *("build_commit", "build_number", "dqrelo_version", "cpu_info", "gpu_info", "backends", "isa"),
            *("model_filename", "model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads"),
            *("type_k", "type_v", "n_gpu_layers", "flash_attn", "use_mmap", "repack", "n_prompt", "n_gen", "n_streams"),
            *("deltas", "delta_filenames", "delta_content_hashes", "base_bytes", "delta_bytes", "test_time"),
            *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "median_ts", "ratio_to_base", "limit", "ratio_to_limit"),
            *("samples_ns", "samples_ts"),
        )
    }
    first, last = documents[0], documents[-1]
    n_params = sum(int(np.prod(dims)) for dims in weight_shapes(NARROW).values())
    assert (first["model_filename"], first["model_n_params"]) == (str(narrow_base), n_params)
    assert (first["n_batch"], first["n_ubatch"], first["type_k"], first["flash_attn"]) == (2048, 512, "f16", -1)
    assert first["cpu_info"]
    assert first["build_commit"].endswith("-dqrelo")
    assert first["isa"] in ("scalar", "avx2", "avxvnni", "avx512vnni", "neon")
    assert last["delta_filenames"] == [str(path) for path in narrow_deltas]
    assert last["delta_content_hashes"] == [DeltaReader(path).content_hash for path in narrow_deltas]


def test_figures_follow_from_the_samples(
    documents: list[dict[str, Any]], narrow_base: Path, narrow_deltas: list[Path]
) -> None:
    counted = Traffic(ModelFile(narrow_base))
    of_delta = {path.name.removesuffix(".dq.gguf"): counted.of_delta(DeltaReader(path)) for path in narrow_deltas}
    alone = {}
    for d in documents:
        n_tokens = (d["n_prompt"] + d["n_gen"]) * d["n_streams"]
        samples = d["samples_ns"]
        assert len(samples) == 3
        assert all(isinstance(ns, int) and ns > 0 for ns in samples)
        assert d["samples_ts"] == pytest.approx([1e9 * n_tokens / ns for ns in samples])
        assert d["avg_ns"] == round(fmean(samples))
        assert d["stddev_ns"] == round(stdev(samples))
        assert d["avg_ts"] == pytest.approx(fmean(d["samples_ts"]))
        assert d["stddev_ts"] == pytest.approx(stdev(d["samples_ts"]))
        assert d["median_ts"] == pytest.approx(median(d["samples_ts"]))
        assert d["base_bytes"] == counted.of_base(d["n_streams"])
        assert d["delta_bytes"] == sum(of_delta[name] for name in d["deltas"])
        test = (d["n_threads"], d["n_prompt"], d["n_gen"], d["n_streams"])
        if not d["deltas"]:
            alone[test] = samples
            assert (d["ratio_to_base"], d["limit"], d["ratio_to_limit"]) == (None, None, None)
            continue
        ratio = median(a / b for a, b in zip(alone[test], samples, strict=True))
        assert d["ratio_to_base"] == pytest.approx(ratio)
        if d["n_prompt"]:
            assert (d["limit"], d["ratio_to_limit"]) == (None, None)
        else:
            assert d["limit"] == pytest.approx(d["base_bytes"] / (d["base_bytes"] + d["delta_bytes"]))
            assert d["ratio_to_limit"] == pytest.approx(ratio / d["limit"])


def test_a_blend_costs_the_bytes_of_its_parts(
    narrow_base: Path, narrow_deltas: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [text for path in narrow_deltas for text in ("--delta", str(path))]
    tests = ["-p", "0", "-n", "2", "-npl", "1,3", "-r", "1", "-t", "1"]
    command = ["-m", str(narrow_base), *files, "--blend", "mix=math*0.5+words*-1", *tests]
    assert bench.main([*command, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [d["deltas"] for d in rows] == [[], ["math"], ["words"], ["mix"], [], ["math", "words", "mix"]]
    alone = [rows[1]["delta_bytes"], rows[2]["delta_bytes"]]
    assert rows[3]["delta_bytes"] == sum(alone)
    assert rows[3]["delta_filenames"] == [str(path) for path in narrow_deltas]
    assert rows[5]["delta_bytes"] == sum(alone)  # A step reads a delta once for all streams that it is a part of.


def test_the_table_has_every_row(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*options, "-ub", "256,512", "--no-warmup", "-r", "1"]) == 0
    table, footer = capsys.readouterr().out.split("\n\n")
    rows = table.splitlines()[2:]
    assert len(rows) == 2 * 26
    deltas = [row.split("|")[8].strip() for row in rows]
    assert {name: deltas.count(name) for name in deltas} == {"-": 20, "math": 12, "words": 12, "2 deltas": 8}
    assert footer.startswith("build: ")


def test_lines_of_json_and_csv_have_the_same_fields(
    options: list[str], documents: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*options, "-o", "jsonl", "--no-warmup", "-r", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [list(d) for d in documents]
    assert bench.main([*options, "-o", "csv", "--no-warmup", "-r", "1"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [list(line) for line in table] == [list(d) for d in documents]
    assert json.loads(table[1]["deltas"]) == ["math"]


def test_defaults_are_llama_benchs(
    narrow_base: Path, narrow_deltas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []

    def keep(plan: Plan) -> Iterator[Row]:
        plans.append(plan)
        yield from ()

    monkeypatch.setattr(run, "run_plan", keep)
    assert bench.main(["-m", str(narrow_base), "--delta", str(narrow_deltas[0])]) == 0
    assert bench.main(["-m", str(narrow_base), *(f"--delta={path}" for path in narrow_deltas)]) == 0
    assert [[test.name for test in plan.tests] for plan in plans] == [
        ["pp512", "tg128"],
        ["pp512", "tg128", "tg128 x2"],
    ]
    assert plans[0].settings == (Settings(2048, 512, "f16", "f16", -1, "auto", 1, 1, None),)
    assert plans[0].n_repetitions == 5


@pytest.mark.parametrize(("option", "key"), [("-mmp", "use_mmap"), ("-rpk", "repack")])
def test_the_base_is_in_memory_in_either_way(
    narrow_base: Path, option: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench.main(["-m", str(narrow_base), *["-p", "4", "-n", "0", "-r", "1", "-t", "1", option, "0,1", "-o", "json"]])
        == 0
    )
    assert [row[key] for row in json.loads(capsys.readouterr().out)] == [False, True]


def test_progress_goes_to_stderr(narrow_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["-m", str(narrow_base), *["-p", "4", "-n", "0", "-r", "2", "-t", "1", "--progress"]]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "dqrelo-bench: pp4: warm-up",
        "dqrelo-bench: pp4: repetition 1 of 2, 1 rows",
        "dqrelo-bench: pp4: repetition 2 of 2, 1 rows",
    ]
    assert "pp4:" not in captured.out


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-p 0 -n 0", "nothing to measure"),
        ("-p 5x", "-p/--n-prompt '5x': expected a whole number from 0"),
        ("-n 8,", "-n/--n-gen '': expected"),
        ("-n=-1", "-n/--n-gen '-1': expected"),
        ("-n 99999999999", "-n/--n-gen '99999999999': expected"),
        ("-t 0", "-t/--threads '0': expected a whole number from 1"),
        ("-r 0", "-r/--repetitions '0': expected a whole number from 1"),
        ("-npl 0", "-npl/--parallel '0'"),
        ("-npl 300 -p 4 -n 1 -r 1", "n_seq_max: got 300, expected 1 to 256"),
        ("-pg 512", "-pg '512': expected two numbers"),
        ("-mmp 5", "-mmp/--mmap '5': expected 0 or 1"),
        ("-rpk 2", "-rpk/--repack '2': expected 0 or 1"),
        ("-b 0", "-b/--batch-size '0'"),
        ("-ctk q9", "type_k: got 'q9', expected one of f32"),
        ("-fa maybe", "flash_attn: got 'maybe', expected auto, on or off"),
        ("--delta =a.gguf", "--delta '=a.gguf': expected [NAME=]FILE"),
        ("--blend mix=math*1", "--blend 'mix=math*1': there is no delta 'math'"),
        ("--delta missing.dq.gguf", "missing.dq.gguf: no such file"),
        ("-m missing.gguf", "missing.gguf: no such file"),
    ],
)
def test_bad_input_is_one_line(
    narrow_base: Path, arguments: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["-m", str(narrow_base), *arguments.split()]) == 1
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dqrelo-bench: error: ")
    assert message in lines[0]


def test_a_delta_of_another_base_is_refused(
    tmp_path: Path, narrow_deltas: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger = write_model(tmp_path / "stranger.gguf", NARROW, base_weights(NARROW, seed=9), Type.F16)
    assert bench.main(["-m", str(stranger), "--delta", str(narrow_deltas[0]), "-p", "4", "-n", "0"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "math.dq.gguf" in captured.err


def test_another_quantisation_is_refused_unless_allowed(
    tmp_path: Path, narrow_deltas: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    same = write_model(tmp_path / "same.gguf", NARROW, base_weights(NARROW), Type.Q8_0)
    options = ["-m", str(same), "--delta", str(narrow_deltas[0]), *["-p", "4", "-n", "0", "-r", "1"]]
    assert bench.main(options) == 1
    assert bench.main([*options, "--allow-other-base"]) == 0
    assert "| math " in capsys.readouterr().out
