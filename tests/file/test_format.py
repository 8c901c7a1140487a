"""docs/format.md, the golden files and the code say the same."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.quality import RULES
from dqrelo_gguf.file.reader import DeltaReader

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
HEX_LINE = re.compile(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+?)(?: .*)?$", re.MULTILINE)

# An element of D_hat is a sum of at most 33 terms of at most 1: 33 roundings of partial sums under 33, each 33 * 2^-25.
GOLDEN_TOLERANCE = 4e-5


def golden(data_dir: Path) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((data_dir / "golden-v1.json").read_text(encoding="utf-8"))
    return expected


# --- the document ---


def test_every_key_is_documented() -> None:
    for name, key in vars(fmt).items():
        if name.startswith("KEY_"):
            assert f"`{key}`" in DOCUMENT, key


def test_token_id_keys_are_documented() -> None:
    for key in fmt.TOKEN_ID_KEYS:
        assert f"`{key}`" in DOCUMENT or f"`{key.removeprefix('tokenizer.ggml.')}`" in DOCUMENT


def test_sampling_defaults_are_documented() -> None:
    for key in fmt.SAMPLING_NUMBERS:
        assert f"`{key}`" in DOCUMENT


def test_fields_of_the_quality_record_are_documented() -> None:
    table = DOCUMENT[DOCUMENT.index("## 8. Quality record") :]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    documented = {name: kind.strip() for names, kind, _ in rows for name in re.findall(r"`(\w+)`", names)}
    kinds = {"text": "string", "digest": "string", "count": "u32", "number": "f64"}
    assert documented == {rule.name: kinds[rule.kind] for rule in RULES}


def test_every_declared_type_and_suffix_is_documented() -> None:
    constants = vars(fmt).items()
    types = [value for name, value in constants if name.startswith("DQ_")]
    suffixes = [value for name, value in constants if name.startswith("SUFFIX_")]
    assert len(types) == 16
    for name in types:
        assert f"`{name}`" in DOCUMENT
    for suffix in (fmt.suffix_sign(0), fmt.suffix_sign(1), fmt.suffix_scale(0), fmt.suffix_scale(1), *suffixes):
        assert f"`N{suffix}`" in DOCUMENT


def test_hex_of_the_worked_example_is_in_its_file(data_dir: Path) -> None:
    raw = (data_dir / "worked-example.dq.gguf").read_bytes()
    example = DOCUMENT[DOCUMENT.index("## 7. Worked example") :]
    lines = HEX_LINE.findall(example)
    assert len(lines) > 30
    for offset, text in lines:
        expected = bytes.fromhex(text)
        assert raw[int(offset, 16) : int(offset, 16) + len(expected)] == expected, offset
    assert f"({len(raw)} bytes)" in example


def test_numbers_of_the_worked_example(data_dir: Path) -> None:
    reader = DeltaReader(data_dir / "worked-example.dq.gguf")
    reader.verify()
    example = DOCUMENT[DOCUMENT.index("## 7. Worked example") :]
    rows = [[float(x) for x in line.split()] for line in re.findall(r"^row \d:(.*)$", example, re.MULTILINE)]
    assert np.array_equal(reader.reconstruct("blk.0.ffn_up.weight"), np.array(rows, np.float32))
    assert reader.ratio == 26 / 32
    hashed = re.search(r"SHA-256 of\n\n```\n(.*?)```", example, re.DOTALL)
    assert hashed is not None
    assert hashlib.sha256(hashed[1].encode()).hexdigest() == reader.content_hash
    assert reader.content_hash in example


# --- the golden files ---


def test_golden_delta_reads_as_ever(data_dir: Path) -> None:
    expected = golden(data_dir)["delta"]
    reader = DeltaReader(data_dir / "golden-v1.dq.gguf")
    reader.verify()
    assert [w.name for w in reader.weights] == list(expected["weights"])
    for w in reader.weights:
        facts = expected["weights"][w.name]
        assert [list(w.ne), w.n_planes, w.rank] == [facts["ne"], facts["n_planes"], facts["rank"]]
        d_hat = reader.reconstruct(w.name).ravel()
        at = [(2 * t + 1) * d_hat.size // 32 for t in range(16)]
        assert np.allclose(d_hat[at], facts["values"], rtol=0, atol=GOLDEN_TOLERANCE)
        assert np.linalg.norm(d_hat.astype(np.float64)) == pytest.approx(facts["norm"], rel=GOLDEN_TOLERANCE)
    for fact in ("name", "ratio", "content_hash", "n_bytes"):
        assert getattr(reader, fact) == expected[fact]


def test_golden_base_has_its_identity(data_dir: Path) -> None:
    expected = golden(data_dir)["base"]
    identity = base_identity(data_dir / "golden-base-v1.gguf")
    assert identity.digest == expected["digest"]
    assert list(identity.sample_tensors) == expected["sample_tensors"]
    assert identity.samples.tolist() == expected["samples"]


def test_golden_files_can_be_made_again(data_dir: Path, tmp_path: Path) -> None:
    runpy.run_path(str(data_dir / "make_golden.py"))["main"](tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == sorted(p.name for p in data_dir.glob("*.gguf"))
    for made in tmp_path.glob("*.gguf"):
        assert made.read_bytes() == (data_dir / made.name).read_bytes(), made.name
    # Sums of D_hat are rounded as the processor's BLAS does it; test_golden_delta_reads_as_ever bounds them.
    made_facts, facts = golden(tmp_path), golden(data_dir)
    assert made_facts["base"] == facts["base"]
    assert made_facts["delta"]["weights"].keys() == facts["delta"]["weights"].keys()


def test_golden_files_stay_small(data_dir: Path) -> None:
    assert sum(p.stat().st_size for p in data_dir.glob("*.gguf")) < 64 * 1024
