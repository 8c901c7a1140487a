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

from dqrelo_gguf.errors import FormatError, ShapeError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import Type, WeightSpec
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


def test_every_declared_type_and_suffix_is_documented() -> None:
    for name in (fmt.DQ_SIGN, fmt.DQ_SCALE, fmt.DQ_CSCALE, fmt.DQ_U, fmt.DQ_V, fmt.DQ_DENSE):
        assert f"`{name}`" in DOCUMENT
    suffixes = (fmt.suffix_sign(0), fmt.suffix_sign(1), fmt.suffix_scale(0), fmt.suffix_scale(1))
    for suffix in (*suffixes, fmt.SUFFIX_CSCALE, fmt.SUFFIX_U, fmt.SUFFIX_V, fmt.SUFFIX_DENSE):
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
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (data_dir / made.name).read_bytes(), made.name


def test_golden_files_stay_small(data_dir: Path) -> None:
    assert sum(p.stat().st_size for p in data_dir.glob("*.gguf")) < 64 * 1024


# --- sizes, and what the format cannot store ---


def test_sizes_follow_from_the_spec() -> None:
    spec = WeightSpec("w", (64, 16), n_planes=2, rank=4, scale_per_row=True, cscale=True)
    signs, scales, cscale, factors = 2 * 16 * 8, 2 * 16 * 4, 64 * 4, 2 * 4 * (16 + 64)
    assert spec.n_bytes == signs + scales + cscale + factors
    assert spec.n_file_bytes == 2 * (128 + 64) + 256 + 128 + 512
    assert spec.n_elements == 1024


def test_sizes_of_quantised_factors_and_experts() -> None:
    spec = WeightSpec("w", (64, 16, 3), rank=32, u_type=Type.Q8_0, v_type=Type.Q4_0)
    assert spec.n_bytes == 3 * (16 * 8 + 4 + 16 * 34 + 32 * 2 * 18)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (WeightSpec("w", (64,)), ShapeError, "2 or 3 dimensions"),
        (WeightSpec("w", (64, 1)), ShapeError, "2 or 3 dimensions"),
        (WeightSpec("w", (8, 2, 2, 2)), ShapeError, "2 or 3 dimensions"),
        (WeightSpec("w", (60, 4)), ShapeError, "multiple of 8"),
        (WeightSpec("w", (64, 0)), ShapeError, "at least 1"),
        (WeightSpec("w", ()), ShapeError, "1 to 4 dimensions"),
        (WeightSpec("w", (1 << 40, 1 << 40)), ShapeError, "too many elements"),
        (WeightSpec("w", (64, 4), n_planes=5), FormatError, "5 sign planes, expected 1 to 4"),
        (WeightSpec("w", (64, 4), n_planes=0), FormatError, "0 sign planes"),
        (WeightSpec("w", (64, 4), rank=-1), FormatError, "rank -1"),
        (WeightSpec("w", (64, 4), rank=3, u_type=Type.Q8_0), FormatError, "rows of 3, expected a multiple of 32"),
        (WeightSpec("w", (40, 4), rank=2, v_type=Type.Q4_0), FormatError, "rows of 40, expected a multiple of 32"),
        (WeightSpec("w", (64, 4), rank=2, u_type=Type.Q4_1), FormatError, "type q4_1, expected f16, bf16"),
        (WeightSpec("w", (64,), n_planes=0, dense_type=Type.Q8_0), FormatError, "type q8_0, expected f32, f16"),
        (WeightSpec("w", (64, 4), n_planes=1, dense_type=Type.F32), FormatError, "no planes, factors"),
    ],
)
def test_specs_outside_the_format_are_refused(spec: WeightSpec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec.check()
