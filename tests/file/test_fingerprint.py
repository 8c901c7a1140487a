"""fingerprint.py: base identity, its comparison, and split files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import BaseMismatchError, FormatError, InputError, ShapeError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import BaseIdentity, Match, ModelFile, base_identity, compare, correlation, shards
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import BASE_TENSORS, SPECS, Edited, Type, meta, write_base, write_delta


def u16(value: int) -> GGUFValue:
    return GGUFValue(value, ValueType.UINT16)


def split(base: Path, directory: Path, n: int) -> list[Path]:
    """Splits a base into n shards as gguf-split does: tensors dealt out in order, metadata in the first."""
    paths = []
    whole = GGUFFile(base)
    for i in range(n):
        names = list(whole.tensors)[i * len(whole.tensors) // n : (i + 1) * len(whole.tensors) // n]
        part = Edited(base)
        data, part.data = part.data, bytearray()
        if i > 0:
            part.fields = {fmt.KEY_ALIGNMENT: part.fields[fmt.KEY_ALIGNMENT]}
        part.tensors = [t for t in part.tensors if t.name in names]
        for t in part.tensors:
            n_bytes, start = whole.tensors[t.name].n_bytes, t.offset
            t.offset = len(part.data)
            part.data += data[start : start + n_bytes].ljust(-(-n_bytes // 64) * 64, b"\0")
        part.fields |= {
            "split.no": u16(i),
            "split.count": u16(n),
            "split.tensors.count": GGUFValue(len(whole.tensors), ValueType.INT32),
        }
        paths.append(part.save(directory / f"base-{i + 1:05d}-of-{n:05d}.gguf"))
    return paths


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
    for name in matrices:  # fewer than 16, so all of them
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
    other[1] = rng.standard_normal(32)  # one of two groups is another
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
        BaseMismatchError, match=r"of 'base' \(llama\), other.gguf is 'stranger' \(llama\): another model"
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


# --- split files ---


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_split_base_is_the_same_base(small_base: Path, tmp_path: Path, n: int) -> None:
    paths = split(small_base, tmp_path, n)
    whole = base_identity(small_base)
    for path in paths:  # any shard stands for the model
        identity = base_identity(path)
        assert identity.digest == whole.digest
        assert np.array_equal(identity.samples, whole.samples)
    assert ModelFile(paths[-1]).name == "base"


def test_shards_are_listed_in_order(small_base: Path, tmp_path: Path) -> None:
    paths = split(small_base, tmp_path, 3)
    assert shards(paths[1]) == paths
    assert shards(small_base) == [small_base]


def test_the_missing_shard_is_named(small_base: Path, tmp_path: Path) -> None:
    paths = split(small_base, tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"base-00002-of-00003.gguf: no such file \(3 shards belong to this model\)"):
        base_identity(paths[0])


def test_a_renamed_shard_is_noticed(small_base: Path, tmp_path: Path) -> None:
    paths = split(small_base, tmp_path, 2)
    paths[1].rename(tmp_path / "alone.gguf")
    with pytest.raises(FormatError, match=r"is shard 2 of 2, expected 1 of 1. Was it renamed\?"):
        base_identity(tmp_path / "alone.gguf")


def test_swapped_shards_are_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split(small_base, tmp_path, 2)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(FormatError, match="is shard 2 of 2, expected 1 of 2"):
        base_identity(first)


def test_a_tensor_in_two_shards_is_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split(small_base, tmp_path, 2)
    edited = Edited(second)
    edited.tensors[0].name = "token_embd.weight"
    edited.save(second)
    with pytest.raises(FormatError, match=r"'token_embd.weight' is in base-00001-of-00002.gguf too"):
        base_identity(first)


def test_a_lost_tensor_is_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split(small_base, tmp_path, 2)
    edited = Edited(second)
    edited.tensors.pop()
    edited.save(second)
    with pytest.raises(FormatError, match="its shards have 7 tensors, expected 8"):
        base_identity(first)


# --- what is no base ---


def test_an_adapter_is_no_base(small_delta: Path) -> None:
    with pytest.raises(InputError, match="is an adapter, expected a model"):
        base_identity(small_delta)


def test_a_file_without_architecture_is_no_base(tmp_path: Path) -> None:
    edited = Edited(write_base(tmp_path / "a.gguf"))
    del edited.fields["general.architecture"]
    with pytest.raises(InputError, match=r"has no general\.architecture"):
        base_identity(edited.save(tmp_path / "b.gguf"))


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.gguf: no such file$"):
        base_identity(tmp_path / "none.gguf")


def test_a_name_of_zero_shards_is_a_plain_name(small_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "base-00000-of-00000.gguf"
    path.write_bytes(small_base.read_bytes())
    assert base_identity(path).digest == base_identity(small_base).digest


def test_an_identity_is_plain_data(small_base: Path) -> None:
    identity = base_identity(small_base)
    assert isinstance(identity, BaseIdentity)
    assert len(identity.digest) == 64
    assert identity.samples.dtype == np.float32
    assert identity.samples.size == 32 * len(identity.sample_tensors)
