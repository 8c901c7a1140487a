"""The C++ reader against the Python one: what they find in sound files, and what they say of malformed ones.

`dqrelo-check-file` is the C++ reader with AddressSanitizer and UBSan, and holds the file on the heap: a read of one byte too many ends it.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from tests.support.delta_files import SPECS, SPECS_2, SPECS_SPARSE, Edited, Type, split_base, write_base, write_delta
from tests.support.malformed import GOOD_OPTIONS, MALFORMED, MALFORMED_2, QUALITY, Edit
from tests.support.malformed_sparse import MALFORMED_SPARSE
from tests.support.programs import need_test_program

# The sums are of f64 values in C++ and of f32 ones in Python.
SUM_TOLERANCE = 1e-4


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_test_program("dqrelo-check-file"), *args], capture_output=True, text=True, timeout=60, check=False
    )


def found(*args: str | Path) -> dict[str, list[str]]:
    """What the C++ reader prints, as lists of values by key."""
    done = run(*args)
    assert done.returncode == 0, done.stderr
    out: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        out.setdefault(key, []).append(value)
    return out


def refusal(*args: str | Path) -> str:
    """What the C++ reader says when it refuses, without the program's name."""
    done = run(*args)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("dqrelo-check-file: error: ").strip()


# --- sound files ---


def test_facts_are_the_same(small_delta: Path) -> None:
    reader = DeltaReader(small_delta)
    facts = found(small_delta)
    assert facts["name"] == [reader.name]
    assert facts["content_hash"] == [reader.content_hash]
    assert facts["base_digest"] == [reader.base.digest]
    assert float(facts["ratio"][0]) == reader.ratio
    assert int(facts["n_bytes"][0]) == reader.n_bytes
    assert int(facts["n_samples"][0]) == reader.base.samples.size
    assert facts["chat_template"] == ["{{ messages }}"]
    assert facts["eog"] == [" 2"]
    assert "tokenizer.ggml.add_bos_token true" in facts["meta"]


def test_end_tokens_and_templates_are_the_same(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    del edited.fields["tokenizer.chat_template"]
    edited.fields |= {
        "dqrelo.end_token_ids": GGUFValue([7, 3], ValueType.ARRAY, ValueType.UINT32),
        "tokenizer.chat_template.tool_use": GGUFValue("{{ tools }}", ValueType.STRING),
        "tokenizer.chat_templates": GGUFValue(["tool_use"], ValueType.ARRAY, ValueType.STRING),
    }
    path = edited.save(tmp_path / "d.dq.gguf")
    assert DeltaReader(path).meta("dqrelo.end_token_ids") == [7, 3]
    facts = found(path)
    assert facts["eog"] == [" 7 3"]  # EOS, which the file also names, is not one of them.
    assert facts["chat_template"] == ["{{ tools }}"]  # It stands for the one that is not there.


@pytest.mark.parametrize("delta", ["small_delta", "small_delta_2", "small_sparse_delta"])
def test_weights_are_the_same(delta: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(delta)
    reader = DeltaReader(path)
    lines = [line.split() for line in found(path)["weight"]]
    assert [line[0] for line in lines] == [w.name for w in reader.weights]
    for line, w in zip(lines, reader.weights, strict=True):
        assert (int(line[1]), int(line[2])) == (w.n_planes, w.rank)
        d_hat = reader.reconstruct(w.name).astype(np.float64).ravel()
        # The second sum weighs each element by where it lies, so that it sees an exchange of rows, columns or matrices.
        weighted = d_hat * (np.arange(d_hat.size) % 1009 + 1)
        assert np.isclose(float(line[3]), d_hat.sum(), rtol=0, atol=SUM_TOLERANCE * np.abs(d_hat).sum())
        assert np.isclose(float(line[4]), weighted.sum(), rtol=0, atol=SUM_TOLERANCE * np.abs(weighted).sum())


@pytest.mark.parametrize("all_type", [None, Type.F32, Type.F16, Type.BF16], ids=str)
def test_base_identity_is_the_same(tmp_path: Path, all_type: Type | None) -> None:
    path = write_base(tmp_path / "base.gguf", all_type=all_type)
    identity = base_identity(path)
    facts = found("--base", path)
    assert facts["base.digest"] == [identity.digest]
    lines = [line.split() for line in facts["base.samples"]]
    assert tuple(line[0] for line in lines) == identity.sample_tensors
    samples = np.array([[float(x) for x in line[1:]] for line in lines], np.float32)
    assert np.array_equal(samples.ravel(), identity.samples)


def test_split_base_is_the_same(small_base: Path, tmp_path: Path) -> None:
    shards = split_base(small_base, tmp_path, 2)
    digest = base_identity(small_base).digest
    for path in shards:
        assert base_identity(path).digest == digest
        assert found("--base", path)["base.digest"] == [digest]

    shards[1].rename(tmp_path / "renamed.gguf")
    for path in (shards[0], tmp_path / "renamed.gguf"):
        with pytest.raises(DqreloError) as caught:
            base_identity(path)
        assert bare(refusal("--base", path)) == bare(str(caught.value))


def test_comparison_with_bases_is_the_same(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    same = found(small_delta, small_base)
    assert same["match"] == ["same_file"]

    other_bytes = bytearray(small_base.read_bytes())
    # The byte is in the last tensor, of which every byte of a block matters little.
    other_bytes[-3000] ^= 1
    other_bytes[-64] ^= 1
    (tmp_path / "other.gguf").write_bytes(other_bytes)
    comparison = DeltaReader(small_delta).check_base(tmp_path / "other.gguf")
    facts = found(small_delta, tmp_path / "other.gguf")
    assert facts["match"] == [comparison.match.name.lower()]
    assert float(facts["correlation"][0]) == pytest.approx(comparison.correlation, abs=1e-6)

    stranger = write_base(tmp_path / "stranger.gguf", seed=8, all_type=Type.F32)
    facts = found(small_delta, stranger)
    assert facts["match"] == ["other_model"]
    with pytest.raises(DqreloError) as caught:
        DeltaReader(small_delta).check_base(stranger)
    assert bare(facts["reason"][0]) == bare(str(caught.value))


def test_a_base_with_another_shape_is_refused_alike(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    edited = Edited(small_base)
    edited.tensor("blk.0.attn_q.bias").ne = (47,)
    other = edited.save(tmp_path / "other.gguf")
    with pytest.raises(DqreloError) as caught:
        DeltaReader(small_delta).check_base(other)
    assert bare(refusal(small_delta, other)) == bare(str(caught.value))


@pytest.mark.parametrize("options", GOOD_OPTIONS)
def test_options_are_taken_alike(small_delta: Path, tmp_path: Path, options: str) -> None:
    edited = Edited(small_delta)
    edited.fields["dqrelo.options"] = GGUFValue(GOOD_OPTIONS[options], ValueType.STRING)
    path = edited.save(tmp_path / "a.dq.gguf")
    assert DeltaReader(path).options == json.loads(GOOD_OPTIONS[options])
    found(path)


# --- malformed files ---


def bare(message: str) -> str:
    """A message without directories, which only C++ prints, without the b of Python's bytes and the system's longer words."""
    return re.sub(r"/\S*/", "", message).replace("b'", "'").replace("no such file or directory", "no such file")


def python_refusal(path: Path) -> str:
    with pytest.raises(DqreloError) as caught:
        DeltaReader(path).verify()
    return str(caught.value)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_alike(small_delta: Path, tmp_path: Path, case: str) -> None:
    refused_alike(small_delta, *MALFORMED[case], tmp_path)


@pytest.mark.parametrize("case", MALFORMED_2)
def test_malformed_sign_factors_are_refused_alike(small_delta_2: Path, tmp_path: Path, case: str) -> None:
    refused_alike(small_delta_2, *MALFORMED_2[case], tmp_path)


@pytest.mark.parametrize("case", MALFORMED_SPARSE)
def test_malformed_entries_are_refused_alike(small_sparse_delta: Path, tmp_path: Path, case: str) -> None:
    refused_alike(small_sparse_delta, *MALFORMED_SPARSE[case], tmp_path)


def refused_alike(sound: Path, edit: Edit, message: str, tmp_path: Path) -> None:
    """Edits a sound file, and expects the same words of both readers."""
    edited = Edited(sound)
    edit(edited)
    path = edited.save(tmp_path / "bad.dq.gguf")
    assert re.search(message, refusal(path))
    assert bare(refusal(path)) == bare(python_refusal(path))


INVISIBLE = [
    chr(c) for c in range(sys.maxunicode) if unicodedata.category(chr(c)) in ("Cc", "Cf", "Zl", "Zp") and c != 0
]
# Keys whose text is quoted where it is wrong.
QUOTED_KEYS = ["general.type", "adapter.type", "dqrelo.content_hash", "dqrelo.base.digest"]
QUOTED_ITEMS = [f"dqrelo.{key}" for key in ("tensor.names", "tensor.types", "tensor.sha256", "weight.names")]


def refused_without(path: Path, hidden: str) -> str:
    """What both readers say, in one short line."""
    message = refusal(path)
    assert bare(message) == bare(python_refusal(path))
    assert len(message) < 1000
    assert not set(message) & set(hidden)
    return message


@pytest.mark.parametrize("start", range(0, len(INVISIBLE), 30))
def test_what_cannot_be_seen_is_not_repeated(small_delta: Path, tmp_path: Path, start: int) -> None:
    text = "a".join(INVISIBLE[start : start + 30])
    edited = Edited(small_delta)
    edited.fields["adapter.type"] = GGUFValue(text, ValueType.STRING)
    assert "'?a?a?" in refused_without(edited.save(tmp_path / "a.dq.gguf"), text.replace("a", ""))


@pytest.mark.parametrize("key", [*QUOTED_KEYS, *QUOTED_ITEMS, "a key", "a key twice", "a tensor", "a tensor's type"])
def test_long_texts_are_not_repeated(small_delta: Path, tmp_path: Path, key: str) -> None:
    """A megabyte, cut in the middle of a character."""
    text = "a\u202e" + "\u65e5" * 300_000
    edited = Edited(small_delta)
    if key in QUOTED_KEYS:
        edited.fields[key] = GGUFValue(text, ValueType.STRING)
    elif key in QUOTED_ITEMS:
        edited.fields[key].value[0] = text
    elif key == "a key":
        edited.fields[text] = GGUFValue(float("nan"), ValueType.FLOAT32)
    elif key == "a key twice":
        first, second = ("b" * len(text.encode()), text)
        edited.fields |= {first: GGUFValue(1, ValueType.UINT8), second: GGUFValue(1, ValueType.UINT8)}
        raw = edited.save(tmp_path / "a.dq.gguf").read_bytes()
        (tmp_path / "a.dq.gguf").write_bytes(raw.replace(first.encode(), second.encode()))
        refused_without(tmp_path / "a.dq.gguf", "\u202e")
        return
    else:
        edited.tensors[0].name = text
        edited.tensors[0].type_id = 24 if key == "a tensor" else 142
    refused_without(edited.save(tmp_path / "a.dq.gguf"), "\u202e")


def test_a_header_has_a_limit(small_delta: Path, tmp_path: Path) -> None:
    """The C++ reader parses no more than that of it, so it may say something else."""
    edited = Edited(small_delta)
    n_bytes = len(edited.header())
    edited.fields["other.text"] = GGUFValue("x" * ((64 << 20) - n_bytes + 128), ValueType.STRING)
    path = edited.save(tmp_path / "a.dq.gguf")
    assert re.search("has a header of 6710\\d* bytes, expected at most 67108864", python_refusal(path))
    refusal(path)
    edited.fields["other.text"] = GGUFValue("x" * ((64 << 20) - n_bytes - 256), ValueType.STRING)
    edited.save(path)
    DeltaReader(path).verify()
    found(path)


COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
KEY = struct.Struct("<Q1sI")  # It is a key of one letter and its type.

BROKEN_HEADERS = {
    "magic": b"PK and so on",
    "counts": b"GGUF",
    "version": COUNTS.pack(b"GGUF", 1, 0, 0),
    "tensors": COUNTS.pack(b"GGUF", 3, 1 << 60, 0),
    "keys": COUNTS.pack(b"GGUF", 3, 0, 1 << 60),
    "key's length": COUNTS.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 63) + b"x" * 32,
    "key's text": COUNTS.pack(b"GGUF", 3, 0, 1) + KEY.pack(1, b"\xff", 0) + b"x" * 32,
    "value's type": COUNTS.pack(b"GGUF", 3, 0, 1) + KEY.pack(1, b"k", 99) + b"x" * 32,
    "items": COUNTS.pack(b"GGUF", 3, 0, 1) + KEY.pack(1, b"k", 9) + struct.pack("<IQ", 4, 1 << 61),
    "item's length": COUNTS.pack(b"GGUF", 3, 0, 1) + KEY.pack(1, b"k", 9) + struct.pack("<IQQ", 8, 1, 1 << 62),
    "array of arrays": COUNTS.pack(b"GGUF", 3, 0, 1) + KEY.pack(1, b"k", 9) + struct.pack("<IQ", 9, 1),
    "nothing in it": COUNTS.pack(b"GGUF", 3, 0, 0),
    "shape": COUNTS.pack(b"GGUF", 3, 1, 0) + struct.pack("<Q1sI", 1, b"t", 4) + b"\1" * 20,
}


@pytest.mark.parametrize("case", BROKEN_HEADERS)
def test_broken_header_is_refused_alike(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.dq.gguf"
    path.write_bytes(BROKEN_HEADERS[case])
    assert bare(refusal(path)) == bare(python_refusal(path))


def test_no_file_is_refused_alike(tmp_path: Path) -> None:
    assert bare(refusal(tmp_path / "none")) == bare(python_refusal(tmp_path / "none"))
    (tmp_path / "empty").touch()
    assert refusal(tmp_path / "empty").endswith("is empty")


def test_damage_is_named_alike(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    for spec in SPECS[:5]:
        edited.data[edited.tensor(f"{spec.name}.dq_sign").offset] ^= 1
    path = edited.save(tmp_path / "bad.dq.gguf")
    assert "and 2 more" in refusal(path)
    assert bare(refusal(path)) == bare(python_refusal(path))

    edited = Edited(small_delta)
    edited.fields["dqrelo.content_hash"] = GGUFValue("0" * 64, ValueType.STRING)
    path = edited.save(tmp_path / "worse.dq.gguf")
    assert bare(refusal(path)) == bare(python_refusal(path))


@pytest.mark.parametrize(
    "specs",
    [[SPECS[2], SPECS[6]], [SPECS_2[1], SPECS_2[2]], [SPECS_SPARSE[2], SPECS_SPARSE[4]]],
    ids=["version 1", "version 2", "sparse"],
)
def test_random_damage_is_judged_alike(tmp_path: Path, specs: list[WeightSpec]) -> None:
    whole = tmp_path / "whole.dq.gguf"
    write_delta(whole, specs)
    stamp_quality(whole, QUALITY, DeltaReader(whole).content_hash)
    raw = whole.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "broken.dq.gguf"
    for _ in range(100):
        broken = bytearray(raw)
        for at in rng.integers(0, len(raw), int(rng.integers(1, 4))):
            broken[at] = int(rng.integers(0, 256))
        path.write_bytes(broken)
        try:
            DeltaReader(path).verify()
        except DqreloError:
            refusal(path)
        else:
            found(path)
