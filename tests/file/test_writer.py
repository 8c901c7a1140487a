"""DeltaWriter: what it writes, what it refuses, and what it leaves behind when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import (
    DiskFullError,
    DqreloError,
    FormatError,
    InputError,
    NonFiniteError,
    OutputExistsError,
    ShapeError,
)
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import BaseIdentity
from dqrelo_gguf.file.layout import Type, WeightSpec, delta_ratio
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from tests.support.delta_files import SPECS, SPECS_SPARSE, meta, weight_data, write_delta
from tests.support.limits import file_size_limit

PLAIN = WeightSpec("blk.0.attn_q.weight", (64, 16), rank=4)


def plain_data(**changes: Any) -> WeightData:
    data = weight_data(PLAIN, np.random.default_rng(0))
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def write_plain(path: Path, n_times: int = 1, then: Callable[[], object] = lambda: None) -> None:
    """Plans PLAIN, writes its data n times, calls `then` before the file is finished."""
    with DeltaWriter(path, meta(), [PLAIN]) as writer:
        for _ in range(n_times):
            writer.write(plain_data())
        then()


def names_in(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


# --- what it writes ---


def test_the_header_says_what_was_given(tmp_path: Path) -> None:
    about = meta(
        chat_template="{{ x }}",
        token_ids={"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.bos_token_id": 1},
        add_eos=False,
        reference="base-f16.gguf",
        general={"general.license": GGUFValue("mit", ValueType.STRING)},
        options={"b": 1, "a": "ü"},
    )
    write_delta(tmp_path / "a.dq.gguf", about=about)
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    assert reader.meta("tokenizer.chat_template") == "{{ x }}"
    assert reader.meta("tokenizer.ggml.eot_token_id") == 9
    assert reader.meta("tokenizer.ggml.eos_token_id") is None
    assert reader.meta("tokenizer.ggml.add_eos_token") is False
    assert reader.meta("tokenizer.ggml.add_bos_token") is None
    assert reader.meta("dqrelo.options") == '{"a":"ü","b":1}'
    assert reader.meta("dqrelo.reference") == "base-f16.gguf"
    assert reader.meta("general.license") == "mit"
    assert reader.ratio == delta_ratio(SPECS)
    keys = reader.keys()
    assert not [key for key in keys if key.startswith("llama.")]


def test_sizes_are_as_planned(tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    writer = DeltaWriter(path, meta(), SPECS)
    write_delta(path)
    assert path.stat().st_size == writer.n_file_bytes
    reader = DeltaReader(path)
    assert reader.n_bytes == sum(s.n_bytes for s in SPECS)
    assert [w.n_bytes for w in reader.weights] == [s.n_bytes for s in SPECS]


def test_errors_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    with DeltaWriter(path, meta(), [PLAIN]) as writer:
        writer.write(plain_data(error_delta=0.5, error_weight=0.125))
    (weight,) = DeltaReader(path).weights
    assert (weight.error_delta, weight.error_weight) == (0.5, 0.125)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a.dq.gguf", "b.dq.gguf"):
        write_delta(tmp_path / name)
    assert (tmp_path / "a.dq.gguf").read_bytes() == (tmp_path / "b.dq.gguf").read_bytes()


def test_content_hash_is_of_the_numbers_only(tmp_path: Path) -> None:
    write_delta(tmp_path / "a.dq.gguf")
    write_delta(tmp_path / "b.dq.gguf", about=meta(name="other", chat_template="x"))
    write_delta(tmp_path / "c.dq.gguf", SPECS[:-1])
    a, b, c = (DeltaReader(tmp_path / f"{n}.dq.gguf").content_hash for n in "abc")
    assert a == b != c


def test_float_types_of_the_input_do_not_matter(tmp_path: Path) -> None:
    dtypes: dict[str, type[np.floating[Any]]] = {"a": np.float32, "b": np.float64, "c": np.float16}
    for name, dtype in dtypes.items():
        data = plain_data()
        assert data.u is not None
        assert data.v is not None
        data.u, data.v = data.u.astype(dtype), data.v.astype(dtype)
        with DeltaWriter(tmp_path / name, meta(), [PLAIN]) as writer:
            writer.write(data)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_mode_of_the_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_delta(tmp_path / "a.dq.gguf")
    finally:
        os.umask(old)
    assert (tmp_path / "a.dq.gguf").stat().st_mode & 0o777 == 0o640


def test_stock_gguf_dump_opens_it(small_delta: Path) -> None:
    package = Path(gguf.__file__).parent
    if not (package / "scripts" / "gguf_dump.py").is_file():
        pytest.skip("this copy of gguf has no gguf_dump")
    done = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_dump", str(small_delta)],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "adapter.type = 'dqrelo'" in done.stdout
    assert "blk.0.attn_q.weight.dq_sign1" in done.stdout


def test_stock_gguf_reader_finds_the_same_data(small_delta: Path) -> None:
    stock = {t.name: t for t in gguf.GGUFReader(small_delta).tensors}
    reader = DeltaReader(small_delta)
    assert list(stock) == [t.name for t in reader.tensors]
    for spec in reader.tensors:
        assert tuple(stock[spec.name].shape.tolist()) == spec.ne
        assert stock[spec.name].tensor_type == spec.type
    u = reader.weight("token_embd.weight").u
    assert u is not None
    assert np.array_equal(stock["token_embd.weight.dq_u"].data, u)


def test_only_one_weight_is_held_in_memory(tmp_path: Path) -> None:
    specs = [WeightSpec(f"blk.{i}.ffn_up.weight", (1024, 1024), rank=64) for i in range(8)]
    one = weight_data(specs[0], np.random.default_rng(0))
    with DeltaWriter(tmp_path / "a.dq.gguf", meta(), specs) as writer:
        tracemalloc.start()
        try:
            for _ in specs:
                writer.write(one)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # What is alive at once: a factor in F16 and the mask of the finite check; nothing of the weight before.
    assert peak < 2 * specs[0].n_bytes


# --- what it refuses, before it writes ---


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="Use --force"):
        DeltaWriter(path, meta(), SPECS)
    assert path.read_text() == "precious"
    assert names_in(tmp_path) == ["a.dq.gguf"]


def test_force_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    path.write_text("old")
    with DeltaWriter(path, meta(), [PLAIN], force=True) as writer:
        assert path.read_text() == "old"
        writer.write(plain_data())
    DeltaReader(path).verify()


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    with pytest.raises(OutputExistsError, match="another program"):
        write_plain(path, then=lambda: path.write_text("theirs"))
    assert path.read_text() == "theirs"
    assert names_in(tmp_path) == ["a.dq.gguf"]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no directory"):
        DeltaWriter(tmp_path / "no" / "a.dq.gguf", meta(), SPECS)


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        DeltaWriter(tmp_path, meta(), SPECS, force=True)


def test_free_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DiskFullError, match=r"needs \d+ bytes, .* has 1000 free"):
        DeltaWriter(tmp_path / "a.dq.gguf", meta(), SPECS)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no weights"),
        ([PLAIN, PLAIN], "occurs twice"),
        ([WeightSpec("x" * 54, (64, 16), cscale=True)], "longer than 63 bytes"),
        ([WeightSpec("w", (64, 16), n_planes=9)], "9 sign planes"),
    ],
)
def test_impossible_plans_are_refused(tmp_path: Path, specs: list[WeightSpec], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        DeltaWriter(tmp_path / "a.dq.gguf", meta(), specs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general": {"llama.block_count": GGUFValue(1, ValueType.UINT32)}}, "llama.block_count"),
        ({"general": {"general.type": GGUFValue("model", ValueType.STRING)}}, "general.type"),
        ({"token_ids": {"tokenizer.ggml.sep_token_id": 1}}, "sep_token_id"),
    ],
)
def test_keys_outside_the_format_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        DeltaWriter(tmp_path / "a.dq.gguf", meta(**changes), [PLAIN])


# --- what it refuses while it writes; nothing may be left behind ---


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"planes": []}, ShapeError, "0 sign planes, expected 1"),
        ({"planes": [(np.zeros((16, 4), np.uint8), np.ones(1))]}, ShapeError, r"dq_sign: array has shape \(16, 4\)"),
        ({"planes": [(np.zeros((16, 8), np.int8), np.ones(1))]}, ShapeError, "expected uint8"),
        ({"planes": [(np.zeros((16, 8), np.uint8), np.ones(16))]}, ShapeError, r"dq_scale: array has shape \(16,\)"),
        ({"planes": [(np.zeros((16, 8), np.uint8), np.full(1, np.nan))]}, NonFiniteError, "dq_scale: 1 of 1"),
        ({"u": None}, ShapeError, "dq_u: is missing"),
        ({"u": np.zeros((4, 16))}, ShapeError, r"dq_u: array has shape \(4, 16\), expected \(16, 4\)"),
        ({"v": np.full((4, 64), np.inf)}, NonFiniteError, "dq_v: 256 of 256 values"),
        ({"v": np.full((4, 64), 1e6)}, NonFiniteError, "dq_v: 256 numbers are too large for f16"),
        ({"cscale": np.ones(64)}, ShapeError, "dq_cscale: was given but not planned"),
        ({"dense": np.ones((16, 64))}, ShapeError, "dq_dense: was given but not planned"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[DqreloError], message: str
) -> None:
    with pytest.raises(error, match=message), DeltaWriter(tmp_path / "a.dq.gguf", meta(), [PLAIN]) as writer:
        writer.write(plain_data(**changes))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"start": np.zeros(40)}, ShapeError, "dq_start: array has type float64, expected int32"),
        ({"values": np.zeros(199, np.uint8)}, ShapeError, r"dq_entry: array has shape \(199,\), expected \(200,\)"),
        ({"values": np.full(200, 0x7C, np.uint8)}, NonFiniteError, "dq_entry: 200 numbers are too large for i8"),
        ({"scale": np.full(40, np.inf)}, NonFiniteError, "dq_escale: 40 of 40 values"),
        ({"scale": None}, ShapeError, "dq_escale: is missing"),
        ({"mask": np.zeros((40, 8), np.uint8)}, ShapeError, "dq_mask: was given but not planned"),
        ({"count": None}, ShapeError, "dq_count: is missing"),
    ],
)
def test_entries_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[DqreloError], message: str
) -> None:
    spec = SPECS_SPARSE[0]
    data = weight_data(spec, np.random.default_rng(0))
    assert data.sparse is not None
    data.sparse = replace(data.sparse, **changes)
    with pytest.raises(error, match=message), DeltaWriter(tmp_path / "a.dq.gguf", meta(), [spec]) as writer:
        writer.write(data)
    assert names_in(tmp_path) == []


def test_too_few_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="1 of 2"), DeltaWriter(tmp_path / "a", meta(), SPECS[:2]) as writer:
        writer.write(weight_data(SPECS[0], np.random.default_rng(0)))
    assert names_in(tmp_path) == []


def test_too_many_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="all 1 weights"):
        write_plain(tmp_path / "a.dq.gguf", n_times=2)
    assert names_in(tmp_path) == []


def test_interrupt_while_the_file_is_opened_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, *_: Any, **__: Any) -> None:
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), DeltaWriter(tmp_path / "a.dq.gguf", meta(), [PLAIN]):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        assert len(names_in(tmp_path)) == 1
        raise error

    with pytest.raises(error):
        write_plain(tmp_path / "a.dq.gguf", then=fail)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("n_bytes", [100, 20_000])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, n_bytes: int) -> None:
    specs = [WeightSpec(f"blk.{i}.ffn_up.weight", (512, 64), rank=8) for i in range(4)]
    with file_size_limit(n_bytes), pytest.raises(DiskFullError, match="the disk is full"):
        write_delta(tmp_path / "a.dq.gguf", specs)
    assert names_in(tmp_path) == []


def test_a_disk_that_fills_up_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    # The data is still in the buffer when the limit begins, and is written when the file is finished.
    with ExitStack() as limit, pytest.raises(DiskFullError):
        write_plain(tmp_path / "a.dq.gguf", then=lambda: limit.enter_context(file_size_limit(50)))
    assert names_in(tmp_path) == []


def test_version_is_written(small_delta: Path) -> None:
    assert DeltaReader(small_delta).meta(fmt.KEY_VERSION) == fmt.VERSION_PLAIN
    assert DeltaReader(small_delta).weight("blk.0.attn_k.weight").info.v_type == Type.Q4_0


# --- numbers that a file may not hold ---


@pytest.mark.parametrize(("stored_type", "largest"), [(Type.BF16, 3.4e38), (Type.Q8_0, 1e7), (Type.Q4_0, 1e6)])
def test_numbers_that_overflow_their_type_are_refused(tmp_path: Path, stored_type: Type, largest: float) -> None:
    spec = WeightSpec("w", (64, 32), rank=32, u_type=stored_type)
    data = weight_data(spec, np.random.default_rng(0))
    assert data.u is not None
    data.u = data.u * np.float32(largest)
    data.u.flat[0] = largest
    with (
        pytest.raises(NonFiniteError, match=r"w\.dq_u: .* too large for"),
        DeltaWriter(tmp_path / "a.dq.gguf", meta(), [spec]) as writer,
    ):
        writer.write(data)


def test_metadata_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    identity = BaseIdentity("0" * 64, ("a.weight",), np.full(32, np.nan, np.float32))
    with pytest.raises(NonFiniteError, match=r"'dqrelo\.base\.samples' would have numbers that are NaN"):
        DeltaWriter(tmp_path / "a.dq.gguf", meta(identity), [PLAIN])
    sampling = {"general.sampling.temp": GGUFValue(float("inf"), ValueType.FLOAT32)}
    with pytest.raises(NonFiniteError, match=r"'general\.sampling\.temp' would have"):
        DeltaWriter(tmp_path / "a.dq.gguf", meta(general=sampling), [PLAIN])
    with (
        pytest.raises(NonFiniteError, match=r"'dqrelo\.weight\.error_delta' would have"),
        DeltaWriter(tmp_path / "a.dq.gguf", meta(), [PLAIN]) as writer,
    ):
        writer.write(plain_data(error_delta=np.nan))
    assert names_in(tmp_path) == []


def test_a_sampling_default_that_no_reader_takes_is_refused(tmp_path: Path) -> None:
    general = {"general.sampling.temp": GGUFValue(5000.0, ValueType.FLOAT32)}
    with pytest.raises(FormatError, match=r"'general.sampling.temp' is 5000, expected a number from -1 to 1000"):
        write_delta(tmp_path / "a.dq.gguf", about=meta(general=general))
    assert list(tmp_path.iterdir()) == []
