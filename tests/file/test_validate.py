"""validate.py and container.py: no malformed file is believed, one for every check of docs/format.md, section 4."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import DqreloError, FormatError
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import SPECS, SPECS_2, SPECS_SPARSE, Edited, meta, write_delta
from tests.support.malformed import MALFORMED, MALFORMED_2, Edit
from tests.support.malformed_sparse import MALFORMED_SPARSE


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_in_one_line(small_delta: Path, tmp_path: Path, case: str) -> None:
    refused(small_delta, *MALFORMED[case], tmp_path)


@pytest.mark.parametrize("case", MALFORMED_2)
def test_malformed_sign_factors_are_refused_in_one_line(small_delta_2: Path, tmp_path: Path, case: str) -> None:
    refused(small_delta_2, *MALFORMED_2[case], tmp_path)


@pytest.mark.parametrize("case", MALFORMED_SPARSE)
def test_malformed_entries_are_refused_in_one_line(small_sparse_delta: Path, tmp_path: Path, case: str) -> None:
    refused(small_sparse_delta, *MALFORMED_SPARSE[case], tmp_path)


def refused(sound: Path, edit: Edit, message: str, tmp_path: Path) -> None:
    """Edits a sound file, and expects what the reader says of it."""
    edited = Edited(sound)
    edit(edited)
    with pytest.raises(FormatError, match=message) as caught:
        DeltaReader(edited.save(tmp_path / "bad.dq.gguf"))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'bad.dq.gguf'}: ")
    assert "\n" not in text


def test_the_editor_alone_changes_nothing(small_delta: Path, tmp_path: Path) -> None:
    saved = Edited(small_delta).save(tmp_path / "a.dq.gguf")
    assert saved.read_bytes() == small_delta.read_bytes()


def test_long_names_are_refused(tmp_path: Path) -> None:
    name = "w" * 54
    write_delta(tmp_path / "a.dq.gguf", [WeightSpec(name, (64, 4), n_planes=1)])
    edited = Edited(tmp_path / "a.dq.gguf")
    for t in edited.tensors:
        t.name = "w" + t.name
    for key in ("dqrelo.tensor.names", "dqrelo.weight.names"):
        edited.fields[key].value[:] = ["w" + n for n in edited.fields[key].value]
    with pytest.raises(FormatError, match="more than 63 bytes"):
        DeltaReader(edited.save(tmp_path / "b.dq.gguf"))


def test_duplicate_key_is_refused(small_delta: Path, tmp_path: Path) -> None:
    raw = small_delta.read_bytes()
    twice = raw.replace(b"dqrelo.converter", b"dqrelo.base.name", 1)
    (tmp_path / "a.dq.gguf").write_bytes(twice)
    with pytest.raises(FormatError, match=r"'dqrelo\.base\.name' occurs twice"):
        DeltaReader(tmp_path / "a.dq.gguf")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"begins with b'', expected b'GGUF'"),
        (b"PK\x03\x04 and so on", "is not a GGUF file"),
        (b"GGUF", "ends at byte 4, inside the counts"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "declares 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "declares 1152921504606846976 metadata keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + b"x" * 32, "a string of 9223372036854775808 bytes"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + b"x" * 32, "unknown value type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 61), "has 2305843009213693952 items"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQQ", 3, 0, 1, 1, b"k", 9, 8, 1, 1 << 62), "a string of metadata key 'k' ends"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "array of arrays"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ1s", 3, 0, 1, 1, b"k", 8, 1, b"\xff"), "is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "is not a delta file"),
    ],
)
def test_broken_headers_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a.dq.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        DeltaReader(tmp_path / "a.dq.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_delta(tmp_path / "whole.dq.gguf", [SPECS[0]], meta())
    raw = (tmp_path / "whole.dq.gguf").read_bytes()
    end = len(raw) - 64 * 6  # Behind that, only the last tensor's padding is cut.
    for n in [*range(0, len(raw) - end, 1), *range(0, end, 7)]:
        (tmp_path / "cut.dq.gguf").write_bytes(raw[:n])
        with pytest.raises(FormatError):
            DeltaReader(tmp_path / "cut.dq.gguf")


@pytest.mark.parametrize(
    "specs",
    [[SPECS[2], SPECS[6]], [SPECS_2[1], SPECS_2[2]], [SPECS_SPARSE[2], SPECS_SPARSE[4]]],
    ids=["version 1", "version 2", "sparse"],
)
def test_random_damage_never_ends_in_another_exception(tmp_path: Path, specs: list[WeightSpec]) -> None:
    write_delta(tmp_path / "whole.dq.gguf", specs, meta())
    raw = (tmp_path / "whole.dq.gguf").read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(1500):
        broken = bytearray(raw)
        for at in rng.integers(0, len(raw), int(rng.integers(1, 4))):
            broken[at] = int(rng.integers(0, 256))
        (tmp_path / "broken.dq.gguf").write_bytes(broken)
        try:
            reader = DeltaReader(tmp_path / "broken.dq.gguf")
            reader.damaged()
            with np.errstate(all="ignore"):
                for w in reader.weights:
                    reader.reconstruct(w.name)
        except DqreloError:
            n_refused += 1
    assert n_refused > 500  # Most of the file is header.


def test_a_big_endian_host_is_told(small_delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(FormatError, match=r"is little-endian, .* this host is big-endian, which is not supported"):
        DeltaReader(small_delta)
