"""dqrelo-bench: what is measured in which order, what is counted, and how it is printed."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.bench import run
from dqrelo_gguf.bench.plan import DeltaFile, Plan, Settings, Workload, delta_files, make_tests, numbers, rows_of
from dqrelo_gguf.bench.run import Row, measure
from dqrelo_gguf.bench.traffic import Traffic
from dqrelo_gguf.cli import bench
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import meta, write_base, write_delta
from tests.support.tiny_llama import Shape, Type, base_weights, weight_shapes, write_model

SHAPE = Shape(n_embd=64, n_head=2, n_head_kv=1, n_ff=96)
COLUMNS = ["model", "size", "params", "backend", "threads", "isa", "delta", "test", "t/s", "median"]
COLUMNS += ["ratio", "limit", "ratio/limit"]


def delta_of(base: Path, path: Path, rank: int) -> Path:
    """A delta of random values that changes every weight."""
    specs = [
        WeightSpec(name, dims[::-1], rank=rank) if len(dims) == 2 else WeightSpec.dense(name, dims)
        for name, dims in weight_shapes(SHAPE).items()
    ]
    write_delta(path, specs, meta(base_identity(base), name=path.name))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "base.gguf", SHAPE, base_weights(SHAPE), Type.F16)


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("deltas")
    return [delta_of(base, folder / f"{name}.dq.gguf", rank) for name, rank in (("math", 2), ("words", 8))]


@pytest.fixture(scope="module")
def options(base: Path, deltas: list[Path]) -> list[str]:
    """Two deltas, every kind of test, two numbers of threads."""
    files = [text for path in deltas for text in ("--delta", str(path))]
    return [
        "-m",
        str(base),
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


# --- the order


class FakeTimer:
    """Returns 1, 2, 3 ... nanoseconds, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Sequence[Delta | None], int, int, int, int]] = []

    def time_streams(self, deltas: Sequence[Delta | None], n_prompt: int, n_gen: int, n_threads: int, seed: int) -> int:
        self.calls.append((deltas, n_prompt, n_gen, n_threads, seed))
        return len(self.calls)


def test_rows_take_turns_with_the_same_tokens() -> None:
    timer = FakeTimer()
    rows: Any = [["base"], ["math"], ["words"]]
    samples = measure(timer, Workload(7, 5), rows, n_threads=2, n_repetitions=2, warm_up=True)
    assert timer.calls == [
        *((row, 7, 1, 2, 0) for row in rows),  # the warm-up: the prompt and one step
        *((row, 7, 5, 2, 0) for row in rows),
        *((row, 7, 5, 2, 1) for row in rows),
    ]
    assert samples == [[4, 7], [5, 8], [6, 9]]


def test_without_a_warm_up_the_first_run_counts() -> None:
    timer = FakeTimer()
    assert measure(timer, Workload(0, 5), [[None]], n_threads=1, n_repetitions=3, warm_up=False) == [[1, 2, 3]]


def test_each_delta_has_a_row_alone_and_all_have_one_together() -> None:
    assert rows_of(Workload(8, 0), 2) == [(None,), (0,), (1,)]
    assert rows_of(Workload(0, 8, 3), 2) == [(None, None, None), (0, 1, 0)]
    assert rows_of(Workload(0, 8, 2), 3) == [(None, None), (0, 1)]
    assert rows_of(Workload(0, 8, 2), 0) == [(None, None)]


def test_tests_are_named_as_in_llama_bench() -> None:
    tests = make_tests([512, 0], [128, 0, 128], [(64, 16), (0, 0)], [1, 4])
    assert [test.name for test in tests] == ["pp512", "tg128", "pp64+tg16", "tg128 x4"]
    assert [test.n_tokens for test in tests] == [512, 128, 80, 512]


def test_a_context_serves_all_numbers_of_threads() -> None:
    settings = tuple(Settings(n_ubatch=ub, n_threads=t) for t, ub in itertools.product((1, 2), (256, 512)))
    plan = Plan("base", (), (Workload(8, 0), Workload(0, 8, 4)), settings)
    assert list(plan.contexts()) == [
        (Settings(n_ubatch=256), 1, [1, 2]),
        (Settings(n_ubatch=256), 4, [1, 2]),
        (Settings(n_ubatch=512), 1, [1, 2]),
        (Settings(n_ubatch=512), 4, [1, 2]),
    ]


def test_deltas_have_the_names_of_their_files() -> None:
    assert delta_files(["a/math.dq.gguf", "x=b/math.dq.gguf", "./k=v.gguf"]) == (
        DeltaFile("math", "a/math.dq.gguf"),
        DeltaFile("x", "b/math.dq.gguf"),
        DeltaFile("k=v", "./k=v.gguf"),
    )
    with pytest.raises(InputError, match=r"the name 'math' is taken by 'a/math\.dq\.gguf'"):
        delta_files(["a/math.dq.gguf", "b/math.dq.gguf"])


def test_numbers_come_in_lists_and_repeated() -> None:
    assert numbers("-t", ["1,2", "4"], 1) == [1, 2, 4]


# --- the figures


def row(test: Workload, samples_ns: tuple[int, ...], base_ns: tuple[int, ...] | None) -> Row:
    return Row(
        test=test,
        settings=Settings(n_threads=1),
        model_type="llama",
        model_size=10,
        model_n_params=5,
        deltas=() if base_ns is None else ("math",),
        files=(),
        content_hashes=(),
        base_bytes=900,
        delta_bytes=100,
        test_time="",
        samples_ns=samples_ns,
        base_ns=base_ns,
    )


def test_the_ratio_is_taken_within_each_repetition() -> None:
    # the third repetition was slow for both: the ratio of the medians would be 0.5
    tuned = row(Workload(0, 10), (200, 400, 900), (100, 200, 800))
    assert tuned.ratio_to_base == 0.5
    slow_once = row(Workload(0, 10), (200, 400, 1000), (100, 360, 950))
    assert slow_once.ratio_to_base == 0.9
    assert slow_once.limit == 0.9
    assert slow_once.ratio_to_limit == 1.0
    assert slow_once.median_ts == 1e9 * 10 / 400


def test_one_repetition_has_no_deviation() -> None:
    once = row(Workload(0, 10), (250,), None)
    assert (once.avg_ns, once.stddev_ns, once.stddev_ts, once.median_ts) == (250, 0, 0.0, 4e7)
    assert (once.ratio_to_base, once.limit, once.ratio_to_limit) == (None, None, None)


def test_a_prompt_has_no_limit() -> None:
    assert row(Workload(10, 0), (2,), (1,)).limit is None
    assert row(Workload(10, 5), (2,), (1,)).ratio_to_limit is None
    assert row(Workload(10, 0), (2,), (1,)).ratio_to_base == 0.5


# name, shape, type; bytes: F16 2 an element, F32 4, Q8_0 34 for 32, Q4_0 18 for 32
COUNTED: list[tuple[str, tuple[int, ...], Type]] = [
    ("token_embd.weight", (64, 40), Type.Q8_0),  # 2720
    ("position_embd.weight", (64, 100), Type.F32),  # a row of it is read
    ("blk.0.attn_norm.weight", (64,), Type.F32),  # 256
    ("blk.0.attn_q.weight", (64, 48), Type.F16),  # 6144
    ("blk.0.ffn_up_exps.weight", (64, 4, 8), Type.Q4_0),  # 1152, 8 experts
    ("blk.0.nextn.eh_proj.weight", (64, 64), Type.F16),  # 8192, of a layer that no graph has
]
OUTPUT = ("output.weight", (64, 40), Type.F16)  # 5120
EXPERTS = {
    "llama.expert_count": GGUFValue(8, ValueType.UINT32),
    "llama.expert_used_count": GGUFValue(2, ValueType.UINT32),
}


def test_bytes_of_a_token_are_those_of_the_weights_it_reads(tmp_path: Path) -> None:
    untied = ModelFile(write_base(tmp_path / "untied.gguf", tensors=[*COUNTED, OUTPUT], fields=EXPERTS))
    counted = Traffic(untied, {"blk.0.nextn.eh_proj.weight"})
    assert counted.of_base() == 256 + 6144 + 1152 // 4 + 5120
    assert counted.of_base(3) == 256 + 6144 + 1152 * 3 // 4 + 5120
    assert counted.of_base(16) == 256 + 6144 + 1152 + 5120
    assert Traffic(untied).of_base() == counted.of_base() + 8192
    tied = ModelFile(write_base(tmp_path / "tied.gguf", tensors=COUNTED[:5]))
    assert Traffic(tied).of_base() == 256 + 6144 + 1152 + 2720  # without counts, all experts


def test_bytes_of_a_delta_follow_its_base(tmp_path: Path) -> None:
    # 8 bytes of signs a row, 4 of scale, 2 (64 + n_out) of factors
    specs = [
        WeightSpec("token_embd.weight", (64, 40), rank=1),  # 320 + 4 + 208
        WeightSpec("blk.0.attn_q.weight", (64, 48)),  # 384 + 4
        WeightSpec("blk.0.ffn_up_exps.weight", (64, 4, 8)),  # 256 + 8 * 4
        WeightSpec.dense("blk.0.attn_norm.weight", (64,)),  # 256
    ]
    write_delta(tmp_path / "a.dq.gguf", specs)
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    untied = ModelFile(write_base(tmp_path / "untied.gguf", tensors=[*COUNTED, OUTPUT], fields=EXPERTS))
    tied = ModelFile(write_base(tmp_path / "tied.gguf", tensors=COUNTED, fields=EXPERTS))
    assert Traffic(untied).of_delta(reader) == 388 + 288 // 4 + 256
    assert Traffic(tied).of_delta(reader, 2) == 532 + 388 + 288 // 2 + 256
    assert Traffic(tied, {"blk.0.attn_q.weight"}).of_delta(reader, 4) == reader.n_bytes - 388


# --- the whole command


def test_every_test_has_its_rows(documents: list[dict[str, Any]]) -> None:
    got = [(d["n_threads"], d["n_prompt"], d["n_gen"], d["n_streams"], d["deltas"]) for d in documents]
    alone: list[list[str]] = [[], ["math"], ["words"]]
    single = [(n, *test, 1, d) for n in (1, 2) for test in ((8, 0), (0, 3), (5, 2)) for d in alone]
    together = [(n, 0, 3, streams, d) for streams in (2, 3) for n in (1, 2) for d in ([], ["math", "words"])]
    assert got == single + together


def test_json_has_llama_benchs_fields_and_the_deltas(
    documents: list[dict[str, Any]], base: Path, deltas: list[Path]
) -> None:
    assert {tuple(d) for d in documents} == {
        (
            *("build_commit", "build_number", "dqrelo_version", "cpu_info", "gpu_info", "backends", "isa"),
            *("model_filename", "model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads"),
            *("type_k", "type_v", "n_gpu_layers", "flash_attn", "use_mmap", "n_prompt", "n_gen", "n_streams"),
            *("deltas", "delta_filenames", "delta_content_hashes", "base_bytes", "delta_bytes", "test_time"),
            *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "median_ts", "ratio_to_base", "limit", "ratio_to_limit"),
            *("samples_ns", "samples_ts"),
        )
    }
    first, last = documents[0], documents[-1]
    n_params = sum(int(np.prod(dims)) for dims in weight_shapes(SHAPE).values())
    assert (first["model_filename"], first["model_n_params"]) == (str(base), n_params)
    assert (first["n_batch"], first["n_ubatch"], first["type_k"], first["flash_attn"]) == (2048, 512, "f16", -1)
    assert first["cpu_info"]
    assert first["build_commit"].endswith("-dqrelo")
    assert first["isa"] in ("scalar", "avx2", "avx512vnni", "neon")
    assert last["delta_filenames"] == [str(path) for path in deltas]
    assert last["delta_content_hashes"] == [DeltaReader(path).content_hash for path in deltas]


def test_figures_follow_from_the_samples(documents: list[dict[str, Any]], base: Path, deltas: list[Path]) -> None:
    counted = Traffic(ModelFile(base))
    of_delta = {path.name.removesuffix(".dq.gguf"): counted.of_delta(DeltaReader(path)) for path in deltas}
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


def test_the_table_is_well_formed(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*options, "-ub", "256,512", "--no-warmup"]) == 0
    table, footer = capsys.readouterr().out.split("\n\n")
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    headings = [cell.strip() for cell in lines[0]]
    assert headings == [*COLUMNS[:6], "n_ubatch", *COLUMNS[6:]]
    assert {len(line) for line in lines} == {len(headings)}
    assert {tuple(map(len, line)) for line in lines} == {tuple(map(len, lines[0]))}
    assert all(set(cell) <= {"-", ":"} for cell in lines[1])
    rows = [dict(zip(headings, map(str.strip, line), strict=True)) for line in lines[2:]]
    assert len(rows) == 2 * 26
    for cells in rows:
        is_base, is_prompt = cells["delta"] == "-", cells["test"].startswith("pp")
        assert (cells["ratio"] == "-") == is_base
        assert (cells["limit"] == "-") == (is_base or is_prompt)
        assert (cells["ratio/limit"] == "-") == (is_base or is_prompt)
        assert " ± " in cells["t/s"]
    assert {cells["delta"] for cells in rows} == {"-", "math", "words", "2 deltas"}
    assert footer.startswith("build: ")
    assert "\nmachine: " in footer


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


def test_defaults_are_llama_benchs(base: Path, deltas: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []

    def keep(plan: Plan) -> Iterator[Row]:
        plans.append(plan)
        yield from ()

    monkeypatch.setattr(run, "run_plan", keep)
    assert bench.main(["-m", str(base), "--delta", str(deltas[0])]) == 0
    assert bench.main(["-m", str(base), *(f"--delta={path}" for path in deltas)]) == 0
    assert [[test.name for test in plan.tests] for plan in plans] == [
        ["pp512", "tg128"],
        ["pp512", "tg128", "tg128 x2"],
    ]
    assert plans[0].settings == (Settings(2048, 512, "f16", "f16", -1, "auto", 1, None),)
    assert plans[0].n_repetitions == 5


def test_the_base_is_mapped_or_read(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        bench.main(["-m", str(base), *["-p", "4", "-n", "0", "-r", "1", "-t", "1", "-mmp", "0,1", "-o", "json"]]) == 0
    )
    assert [row["use_mmap"] for row in json.loads(capsys.readouterr().out)] == [False, True]


def test_progress_goes_to_stderr(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["-m", str(base), *["-p", "4", "-n", "0", "-r", "2", "-t", "1", "--progress"]]) == 0
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
        ("-b 0", "-b/--batch-size '0'"),
        ("-ctk q9", "type_k: got 'q9', expected one of f32"),
        ("-fa maybe", "flash_attn: got 'maybe', expected auto, on or off"),
        ("--delta =a.gguf", "--delta '=a.gguf': expected [NAME=]FILE"),
        ("--delta missing.dq.gguf", "missing.dq.gguf: no such file"),
        ("-m missing.gguf", "missing.gguf: no such file"),
    ],
)
def test_bad_input_is_one_line(base: Path, arguments: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["-m", str(base), *arguments.split()]) == 1
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dqrelo-bench: error: ")
    assert message in lines[0]


def test_a_delta_of_another_base_is_refused(
    tmp_path: Path, deltas: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger = write_model(tmp_path / "stranger.gguf", SHAPE, base_weights(SHAPE, seed=9), Type.F16)
    assert bench.main(["-m", str(stranger), "--delta", str(deltas[0]), "-p", "4", "-n", "0"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "math.dq.gguf" in captured.err


def test_another_quantisation_is_refused_unless_allowed(
    tmp_path: Path, deltas: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    same = write_model(tmp_path / "same.gguf", SHAPE, base_weights(SHAPE), Type.Q8_0)
    options = ["-m", str(same), "--delta", str(deltas[0]), *["-p", "4", "-n", "0", "-r", "1"]]
    assert bench.main(options) == 1
    assert bench.main([*options, "--allow-other-base"]) == 0
    assert "| math " in capsys.readouterr().out


# --- the native call


@pytest.fixture
def runtime(base: Path) -> Iterator[Runtime]:
    with Runtime(base, n_threads=1, n_ctx=512, n_batch=32, n_ubatch=16, n_seq_max=2, kv_unified=False) as rt:
        yield rt


def test_timing_leaves_nothing_behind(runtime: Runtime, deltas: list[Path]) -> None:
    session = runtime._session
    math, words = (runtime.load_delta(path) for path in deltas)
    before = runtime.logits([1, 5, 6], math)
    for n_prompt, n_gen in ((100, 0), (0, 5), (40, 3)):  # a prompt of several pieces too
        assert session.time_streams([math, words], n_prompt, n_gen, 2, 0) > 0
        assert session.time_streams([None], n_prompt, n_gen, 1, 0) > 0
    assert session.time_streams([math], 256, 0, 1, 0) > 0  # all of a sequence's memory
    assert session.time_streams([math], 0, 256, 1, 0) > 0  # the first step, which is not measured, takes none of it
    assert np.array_equal(runtime.logits([1, 5, 6], math), before)
    math.close()  # bound to nothing
    words.close()
    with pytest.raises(InputError, match=r"delta 'words\.dq\.gguf' is closed"):
        session.time_streams([None, words], 4, 0, 1, 0)  # it would have run on this delta


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, _: s.time_streams([], 4, 0, 1, 0), "got 0 streams, expected 1 to 2"),
        (lambda s, _: s.time_streams([None] * 3, 4, 0, 1, 0), "got 3 streams, expected 1 to 2"),
        (lambda s, _: s.time_streams([None], 4, 0, 0, 0), "got 0 threads, expected at least 1"),
        (lambda s, _: s.time_streams([None], 257, 0, 1, 0), "no room in the context's memory"),
        (lambda s, d: s.time_streams([None, d], 4, 0, 1, 0), "was loaded for another runtime"),
    ],
)
def test_timing_refuses(
    runtime: Runtime, base: Path, deltas: list[Path], call: Callable[[Any, Delta], object], message: str
) -> None:
    with Runtime(base, n_threads=1) as other:
        stranger = other.load_delta(deltas[0])
        with pytest.raises(InputError, match=message) as caught:
            call(runtime._session, stranger)
    assert "\n" not in str(caught.value)
    assert runtime._session.time_streams([None], 4, 0, 1, 0) > 0  # still in order


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_a_signal_ends_timing(base: Path, deltas: list[Path]) -> None:
    class Interrupted(Exception):  # noqa: N818 - stands for KeyboardInterrupt
        pass

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    with Runtime(base, n_ctx=1 << 17, n_seq_max=1) as rt:
        loaded = rt.load_delta(deltas[0])
        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(Interrupted):
                rt._session.time_streams([loaded], 0, 1 << 17, 1, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        loaded.close()  # bound to nothing
