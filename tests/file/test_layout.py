"""layout.py: sizes, and what the format cannot store."""

from __future__ import annotations

import pytest

from dqrelo_gguf.errors import FormatError, ShapeError
from dqrelo_gguf.file.layout import SparseSpec, Type, WeightSpec


def test_sizes_follow_from_the_spec() -> None:
    spec = WeightSpec("w", (64, 16), n_planes=2, rank=4, scale_per_row=True, cscale=True)
    signs, scales, cscale, factors = 2 * 16 * 8, 2 * 16 * 4, 64 * 4, 2 * 4 * (16 + 64)
    assert spec.n_bytes == signs + scales + cscale + factors
    assert spec.n_file_bytes == 2 * (128 + 64) + 256 + 128 + 512
    assert spec.n_elements == 1024


def test_sizes_of_quantised_factors_and_experts() -> None:
    spec = WeightSpec("w", (64, 16, 3), rank=32, u_type=Type.Q8_0, v_type=Type.Q4_0)
    assert spec.n_bytes == 3 * (16 * 8 + 4 + 16 * 34 + 32 * 2 * 18)


def test_sizes_of_sign_factors() -> None:
    spec = WeightSpec("w", (64, 16, 3), n_planes=0, cscale=True, plane_ranks=(8, 5, 3))
    assert (spec.n_codes, spec.version) == (16, 2)
    assert spec.n_bytes == 3 * (64 * 4 + 16 * 8 + 2 * 16 * 2 + 16 * 2)


def test_sizes_of_entries() -> None:
    spec = WeightSpec.of_entries("w", (520, 16, 3), SparseSpec(1000, Type.I8, has_mask=False))
    assert spec.version == 2
    assert spec.n_bytes == 48 * 3 + 1000 + 4 * 48 + 1000 + 4 * 48
    spec = WeightSpec.of_entries("w", (520, 16, 3), SparseSpec(1000, Type.BF16, has_mask=True))
    assert spec.n_bytes == 48 * 65 + 4 * 48 + 2 * 1000


def test_only_what_needs_version_2_has_it() -> None:
    assert WeightSpec("w", (64, 16), rank=2).version == 1
    assert WeightSpec.dense("w", (64, 16)).version == 1
    assert WeightSpec("w", (64, 16), n_planes=0, rank=2).version == 2
    assert WeightSpec("w", (64, 16), plane_ranks=(8,)).version == 2


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
        (WeightSpec("w", (64, 4), n_planes=5), FormatError, "5 sign planes, expected at most 4"),
        (WeightSpec("w", (64, 4), n_planes=0), FormatError, "no planes, factors or codes, and is not dense"),
        (WeightSpec("w", (64, 4), rank=-1), FormatError, "rank -1"),
        (WeightSpec("w", (64, 4), rank=3, u_type=Type.Q8_0), FormatError, "rows of 3, expected a multiple of 32"),
        (WeightSpec("w", (40, 4), rank=2, v_type=Type.Q4_0), FormatError, "rows of 40, expected a multiple of 32"),
        (WeightSpec("w", (64, 4), rank=2, u_type=Type.Q4_1), FormatError, "type q4_1, expected f16, bf16"),
        (WeightSpec("w", (64,), n_planes=0, dense_type=Type.Q8_0), FormatError, "type q8_0, expected f32, f16"),
        (WeightSpec("w", (64, 4), n_planes=1, dense_type=Type.F32), FormatError, "no planes, factors"),
        (WeightSpec("w", (64, 16), plane_ranks=(4, 8)), FormatError, "plane ranks 4, 8 do not descend"),
        (WeightSpec("w", (64, 16), plane_ranks=(24,)), FormatError, "plane rank 24, expected at most 16"),
        (WeightSpec("w", (64, 16), plane_ranks=(8, 1)), FormatError, "9 codes, expected a multiple of 8"),
        (WeightSpec("w", (64, 16), plane_ranks=(16,) * 5), FormatError, "80 codes, expected at most 64"),
        (
            WeightSpec.of_entries("w", (64, 4), SparseSpec(0, Type.I8, True)),
            FormatError,
            "0 entries, expected 1 to 256",
        ),
        (WeightSpec.of_entries("w", (64, 4), SparseSpec(257, Type.I8, True)), FormatError, "257 entries, expected 1"),
        (
            WeightSpec.of_entries("w", (1 << 20, 1 << 20), SparseSpec(1 << 31, Type.I8, True)),
            FormatError,
            "2147483648 entries, expected 1 to 2147483647",
        ),
        (
            WeightSpec.of_entries("w", (64, 4), SparseSpec(8, Type.F32, True)),
            FormatError,
            "type f32, expected f16, bf16",
        ),
        (WeightSpec.of_entries("w", (64,), SparseSpec(8, Type.F16, True)), ShapeError, "2 or 3 dimensions"),
        (WeightSpec("w", (64, 4), sparse=SparseSpec(8, Type.F16, True)), FormatError, "a sparse weight has no planes"),
    ],
)
def test_specs_outside_the_format_are_refused(spec: WeightSpec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec.check()
