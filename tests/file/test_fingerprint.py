"""fingerprint.py: base identity and its comparison."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import BaseMismatchError, ShapeError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import BaseIdentity, Match, base_identity, compare, correlation
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import BASE_TENSORS, SPECS, Edited, Type, meta, write_base, write_delta

# --- the two parts, computed here straight from docs/format.md with the stock reader ---


def test_digest_is_that_of_the_document(small_base: Path) -> None:
    parts = b""
    for t in sorted(gguf.GGUFReader(small_base).tensors, key=lambda t: t.name.encode()):
        ne = [*t.shape.tolist(), 1, 1, 1][:4]
        parts += f"{t.name} {t.tensor_type.name.lower()} {ne[0]}x{ne[1]}x{ne[2]}x{ne[3]}\n".encode()
        raw = t.data.tobytes()
        n = len(raw)
        parts += raw if n <= 512 else b"".join(raw[c * (n - 64) // 7 :][:64] for c in range(8))
    assert base_identity(small_base).digest == hashlib.sha256(parts).hexdigest()


def test_samples_are_those_of_the_document(small_base: Path) -> None:
    tensors = {t.name: t for t in gguf.GGUFReader(small_base).tensors}
    matrices = sorted((n for n, t in tensors.items() if sum(d > 1 for d in t.shape) >= 2), key=str.encode)
    expected = []
    for name in matrices:  # There are fewer than 16, so all are taken.
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).ravel()
        expected += [values[(2 * t + 1) * values.size // 64] for t in range(32)]
    identity = base_identity(small_base)
    assert list(identity.sample_tensors) == matrices
    assert identity.samples.tolist() == expected


def test_sixteen_tensors_are_spread_over_the_names(tmp_path: Path) -> None:
    tensors = [(f"blk.{i}.w", (8, 2), Type.F32) for i in range(40)]
    base = write_base(tmp_path / "a.gguf", tensors=tensors)
    names = sorted(name for name, _, _ in tensors)
    assert list(base_identity(base).sample_tensors) == [names[q * 40 // 16] for q in range(16)]


def test_vectors_are_not_sampled(tmp_path: Path) -> None:
    base = write_base(tmp_path / "a.gguf", tensors=[("a", (64,), Type.F32), ("b", (64, 1, 1), Type.F32)])
    identity = base_identity(base)
    assert identity.sample_tensors == ()
    assert identity.samples.size == 0


@pytest.mark.parametrize("t", [Type.F64, Type.I8, Type.I16, Type.I32, Type.I64])
def test_plain_types_are_taken_by_value(tmp_path: Path, t: Type) -> None:
    edited = Edited(write_base(tmp_path / "a.gguf", tensors=[("w", (8, 8), Type.F32)]))
    dtype = {Type.F64: "<f8", Type.I8: "<i1", Type.I16: "<i2", Type.I32: "<i4", Type.I64: "<i8"}[t]
    edited.tensors[0].type_id = int(t)
    edited.data = bytearray(np.arange(64, dtype=dtype).tobytes())
    assert base_identity(edited.save(tmp_path / "b.gguf")).samples.tolist() == list(range(1, 64, 2))


# --- what the identity depends on ---


def test_metadata_and_order_do_not_matter(small_base: Path, tmp_path: Path) -> None:
    edited = Edited(small_base)
    edited.fields["general.name"] = GGUFValue("renamed", ValueType.STRING)
    edited.tensors.reverse()
    assert base_identity(edited.save(tmp_path / "a.gguf")).digest == base_identity(small_base).digest


def test_a_shape_matters(small_base: Path, tmp_path: Path) -> None:
    edited = Edited(small_base)
    edited.tensor("blk.0.attn_k.weight").ne = (32, 32)
    assert base_identity(edited.save(tmp_path / "a.gguf")).digest != base_identity(small_base).digest


# --- comparison ---


def test_same_file(small_base: Path) -> None:
    found = compare(base_identity(small_base), small_base)
    assert (found.match, found.correlation) == (Match.SAME_FILE, 1.0)


# K-quant tensors of small_base hold random blocks, no quantisation of anything: these bases have one type throughout.
@pytest.mark.parametrize("t", [Type.F16, Type.BF16, Type.Q8_0, Type.Q5_1, Type.Q4_0])
def test_another_quantisation_is_the_same_model(tmp_path: Path, t: Type) -> None:
    tensors = [x for x in BASE_TENSORS if x[1][0] % 32 == 0]
    original = write_base(tmp_path / "f32.gguf", all_type=Type.F32, tensors=tensors)
    found = compare(base_identity(original), write_base(tmp_path / "q.gguf", all_type=t, tensors=tensors))
    assert found.match is Match.SAME_MODEL
    assert found.correlation > 0.98


def test_other_values_are_another_model(tmp_path: Path) -> None:
    one = write_base(tmp_path / "one.gguf", seed=1, all_type=Type.F32)
    found = compare(base_identity(one), write_base(tmp_path / "two.gguf", seed=2, all_type=Type.F32))
    assert found.match is Match.OTHER_MODEL
    assert abs(found.correlation) < 0.5


def test_a_missing_tensor_is_another_model(small_base: Path, tmp_path: Path) -> None:
    less = write_base(tmp_path / "a.gguf", tensors=BASE_TENSORS[1:])
    assert compare(base_identity(small_base), less).match is Match.OTHER_MODEL


def test_groups_count_alike_whatever_their_size() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 32)).astype(np.float32)
    other = values.copy()
    other[1] = rng.standard_normal(32)  # One of two groups is another.
    scale = np.array([[1.0], [1e-3]], np.float32)
    small = correlation((values * scale).ravel(), (other * scale).ravel())
    assert small == pytest.approx(correlation(values.ravel(), other.ravel()), abs=1e-6)


def test_correlation_is_zero_where_it_is_undefined() -> None:
    ones, ramp = np.ones(32, np.float32), np.arange(32, dtype=np.float32)
    assert correlation(np.empty(0, np.float32), np.empty(0, np.float32)) == 0
    assert correlation(np.zeros(32, np.float32), ramp) == 0
    assert correlation(ones, ramp) == 0
    assert correlation(ramp, np.where(ramp == 3, np.nan, ramp).astype(np.float32)) == 0
    assert correlation(np.where(ramp == 3, np.inf, ramp).astype(np.float32), ramp) == 0


def test_groups_of_zeros_are_left_out() -> None:
    ramp = np.arange(32, dtype=np.float32)
    delta = np.concatenate([ramp, np.zeros(32, np.float32)])
    assert correlation(delta, np.concatenate([ramp, ramp[::-1]])) == pytest.approx(1)


# --- a delta against a base ---


def test_check_base_accepts_its_own(small_delta: Path, small_base: Path) -> None:
    assert DeltaReader(small_delta).check_base(small_base).match is Match.SAME_FILE


def test_check_base_can_insist_on_the_bytes(tmp_path: Path) -> None:
    tensors = BASE_TENSORS[:5]
    original = write_base(tmp_path / "f32.gguf", all_type=Type.F32, tensors=tensors)
    again = write_base(tmp_path / "f16.gguf", all_type=Type.F16, tensors=tensors)
    write_delta(tmp_path / "a.dq.gguf", SPECS[:3], meta(base_identity(original)))
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    assert reader.check_base(again).match is Match.SAME_MODEL
    with pytest.raises(BaseMismatchError, match="same model in other bytes"):
        reader.check_base(again, allow_other_bytes=False)


def test_check_base_names_both_models(small_delta: Path, tmp_path: Path) -> None:
    name = {"general.name": GGUFValue("stranger", ValueType.STRING)}
    other = write_base(tmp_path / "other.gguf", seed=9, all_type=Type.F32, fields=name)
    with pytest.raises(
        BaseMismatchError, match=r"of 'base' \(llama\), .*/other.gguf is 'stranger' \(llama\): another model"
    ):
        DeltaReader(small_delta).check_base(other)


def test_check_base_refuses_another_architecture(small_delta: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other.gguf", fields={"general.architecture": GGUFValue("qwen2", ValueType.STRING)})
    with pytest.raises(BaseMismatchError, match=r"'base' \(qwen2\): another architecture"):
        DeltaReader(small_delta).check_base(other)


def test_check_base_refuses_another_shape(small_delta: Path, small_base: Path, tmp_path: Path) -> None:
    edited = Edited(small_base)
    edited.tensor("blk.0.attn_k.weight").ne = (32, 32)
    with pytest.raises(ShapeError, match=r"'blk.0.attn_k.weight' is 32x32 there, expected 64x16"):
        DeltaReader(small_delta).check_base(edited.save(tmp_path / "a.gguf"))


def test_check_base_names_a_missing_tensor(small_delta: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError, match=r"it has no tensor 'token_embd.weight'"):
        DeltaReader(small_delta).check_base(write_base(tmp_path / "a.gguf", tensors=BASE_TENSORS[1:]))


def test_an_identity_is_plain_data(small_base: Path) -> None:
    identity = base_identity(small_base)
    assert isinstance(identity, BaseIdentity)
    assert len(identity.digest) == 64
    assert identity.samples.dtype == np.float32
    assert identity.samples.size == 32 * len(identity.sample_tensors)
