"""DeltaReader: what it returns, and one malformed file for every check of docs/format.md, section 4."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.errors import DqreloError, FormatError, InputError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.weight_data import WeightData
from tests.support.delta_files import SPECS, Edited, Type, meta, write_delta

Edit = Callable[[Edited], Any]

Q = "blk.0.attn_q.weight"
EMBD = "token_embd.weight"

# f32 sums of at most 36 terms of at most 4 each, in another order than here: 36 roundings of 36 * 4 * 2^-24.
SUM_TOLERANCE = 4e-4


# --- what it returns ---


def expected_d_hat(spec: WeightSpec, data: WeightData) -> np.ndarray[Any, Any]:
    """docs/format.md section 1, element by element in double precision; factors before they are stored."""
    if data.dense is not None:
        return data.dense
    shape = (1, *reversed(spec.ne)) if len(spec.ne) == 2 else tuple(reversed(spec.ne))
    out = np.zeros(shape)
    for e in range(shape[0]):
        for bits, scale in data.planes:
            bits_e, scale_e = bits.reshape(*shape[:2], -1)[e], np.atleast_2d(scale)[e]
            for i in range(shape[1]):
                for j in range(shape[2]):
                    sign = 1 if bits_e[i, j // 8] >> (j % 8) & 1 else -1
                    column = 1.0 if data.cscale is None else np.atleast_2d(data.cscale)[e, j]
                    out[e, i, j] += scale_e[i if spec.scale_per_row else 0] * column * sign
        if data.u is not None and data.v is not None:
            u, v = data.u.reshape(shape[0], shape[1], -1)[e], data.v.reshape(shape[0], -1, shape[2])[e]
            out[e] += u.astype(np.float64) @ v.astype(np.float64)
    return out.reshape(tuple(reversed(spec.ne)))


# Largest error of a stored factor's element, elements being at most 1: half a step of the type. 32 products at most.
FACTOR_STEP = {Type.F32: 0.0, Type.F16: 2**-12, Type.BF16: 2**-9, Type.Q8_0: 0.5 / 127, Type.Q4_0: 1 / 8}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_reconstruct_is_the_formula(tmp_path: Path, spec: WeightSpec) -> None:
    (data,) = write_delta(tmp_path / "a.dq.gguf", [spec])
    d_hat = DeltaReader(tmp_path / "a.dq.gguf").reconstruct(spec.name)
    assert d_hat.dtype == np.float32
    step = 2.1 * max(FACTOR_STEP[spec.u_type], FACTOR_STEP[spec.v_type]) * spec.rank
    assert np.allclose(d_hat, expected_d_hat(spec, data), rtol=0, atol=SUM_TOLERANCE + step)


@pytest.mark.parametrize("seed", range(20))
def test_round_trip_of_random_plans(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = [int(rng.integers(2, 4))] if rng.random() < 0.4 else []
    ne = (8 * int(rng.integers(1, 9)), int(rng.integers(2, 9)), *experts)
    spec = WeightSpec(
        "w",
        ne,
        n_planes=int(rng.integers(1, 5)),
        rank=int(rng.integers(0, min(4, ne[1] + 1))),
        scale_per_row=bool(rng.random() < 0.5),
        cscale=bool(rng.random() < 0.5),
        u_type=Type.F32,
        v_type=Type.F32,
    )
    (data,) = write_delta(tmp_path / "a.dq.gguf", [spec])
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    reader.verify()
    (info,) = reader.weights
    assert (info.ne, info.n_planes, info.rank, info.cscale) == (spec.ne, spec.n_planes, spec.rank, spec.cscale)
    assert info.scale_per_row == (spec.scale_per_row,) * spec.n_planes
    stored = reader.weight("w")
    for (bits, scale), (bits_in, scale_in) in zip(stored.planes, data.planes, strict=True):
        assert np.array_equal(bits, bits_in)
        assert np.array_equal(scale, scale_in)
    assert np.allclose(reader.reconstruct("w"), expected_d_hat(spec, data), rtol=0, atol=SUM_TOLERANCE)


def test_arrays_are_views_and_outlive_the_reader(small_delta: Path) -> None:
    bits, _ = DeltaReader(small_delta).weight(Q).planes[1]
    assert not bits.flags.owndata
    assert not bits.flags.writeable
    assert int(bits.sum()) > 0


def test_quantised_factors_are_raw_blocks(small_delta: Path) -> None:
    stored = DeltaReader(small_delta).weight(Q)
    assert stored.u is not None
    assert stored.v is not None
    assert stored.u.dtype == stored.v.dtype == np.uint8
    assert (stored.u.shape, stored.v.shape) == ((48, 34), (32, 68))


def test_an_unchanged_weight_is_a_key_error(small_delta: Path) -> None:
    with pytest.raises(KeyError):
        DeltaReader(small_delta).weight("output.weight")


def test_each_plane_may_have_its_own_form_of_scale(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    name = f"{Q}.dq_scale1"
    i = [t.name for t in edited.tensors].index(name)
    edited.tensors[i].ne = (1,)
    edited.fields["dqrelo.tensor.ne"].value[4 * i : 4 * i + 4] = [1, 1, 1, 1]
    start = edited.tensors[i].offset
    n_removed = edited.tensors[i + 1].offset - start - 64  # 48 scales take 192 bytes, one takes 64
    del edited.data[start + 64 : start + 64 + n_removed]
    for t in edited.tensors[i + 1 :]:
        t.offset -= n_removed
    reader = DeltaReader(edited.save(tmp_path / "a.dq.gguf"))
    assert reader.weight(Q).info.scale_per_row == (True, False)
    reader.reconstruct(Q)


def test_unknown_keys_are_allowed(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    edited.fields["general.finetune"] = GGUFValue("x", ValueType.STRING)
    edited.fields["other.numbers"] = GGUFValue([1, 2], ValueType.ARRAY, ValueType.INT16)
    reader = DeltaReader(edited.save(tmp_path / "a.dq.gguf"))
    assert reader.meta("other.numbers") == [1, 2]


# --- digests ---


def test_a_damaged_tensor_is_named(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    edited.data[edited.tensor(f"{EMBD}.dq_v").offset] ^= 1
    reader = DeltaReader(edited.save(tmp_path / "a.dq.gguf"))
    assert reader.damaged() == [f"{EMBD}.dq_v"]
    with pytest.raises(FormatError, match=rf"damaged: the data of '{EMBD}.dq_v' does not have"):
        reader.verify()


def test_a_changed_digest_does_not_hide_it(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    first, second = edited.tensors[:2]
    edited.data[first.offset] ^= 1
    n_bytes = 8 * 40  # of the first tensor, 40 rows of 64 signs
    assert second.offset == n_bytes
    edited.fields["dqrelo.tensor.sha256"].value[0] = hashlib.sha256(edited.data[:n_bytes]).hexdigest()
    reader = DeltaReader(edited.save(tmp_path / "a.dq.gguf"))
    assert reader.damaged() == []
    with pytest.raises(FormatError, match=r"content_hash is .*, its tensors have"):
        reader.verify()


def test_content_hash_covers_the_declarations(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    edited.fields["dqrelo.content_hash"] = GGUFValue("0" * 64, ValueType.STRING)
    with pytest.raises(FormatError, match=r"content_hash is 0000"):
        DeltaReader(edited.save(tmp_path / "a.dq.gguf")).verify()


# --- malformed files: one edit each ---


def set_field(key: str, value: Any, value_type: ValueType, item_type: ValueType | None = None) -> Edit:
    return lambda e: e.fields.update({key: GGUFValue(value, value_type, item_type)})


def set_item(key: str, index: int, value: Any) -> Edit:
    return lambda e: e.fields[key].value.__setitem__(index, value)


def drop_field(key: str) -> Edit:
    return lambda e: e.fields.pop(key)


def set_tensor(name: str, **changes: Any) -> Edit:
    return lambda e: vars(e.tensor(name)).update(changes)


def set_scale(name: str, value: float) -> Edit:
    def edit(e: Edited) -> None:
        at = e.tensor(name).offset
        e.data[at : at + 4] = struct.pack("<f", value)

    return edit


def swap_tensors(i: int, j: int) -> Edit:
    """Changes the order of two tensors everywhere but in the data."""

    def edit(e: Edited) -> None:
        e.tensors[i], e.tensors[j] = e.tensors[j], e.tensors[i]
        for key in ("names", "types", "sha256"):
            items = e.fields[f"dqrelo.tensor.{key}"].value
            items[i], items[j] = items[j], items[i]

    return edit


def drop_tensor(name: str) -> Edit:
    def edit(e: Edited) -> None:
        i = [t.name for t in e.tensors].index(name)
        del e.tensors[i]
        for key, n in (("names", 1), ("types", 1), ("sha256", 1), ("ne", 4)):
            del e.fields[f"dqrelo.tensor.{key}"].value[n * i : n * (i + 1)]

    return edit


def rename_tensor(i: int, name: str) -> Edit:
    def edit(e: Edited) -> None:
        e.tensors[i].name = name
        e.fields["dqrelo.tensor.names"].value[i] = name

    return edit


def drop_last_weight(e: Edited) -> None:
    for key, n in (("names", 1), ("ne", 4), ("rank", 1), ("n_planes", 1), ("error_delta", 1), ("error_weight", 1)):
        del e.fields[f"dqrelo.weight.{key}"].value[-n:]


def empty_weights(e: Edited) -> None:
    for key, field in e.fields.items():
        if key.startswith("dqrelo.weight."):
            field.value.clear()


STRING, U32, ARRAY = ValueType.STRING, ValueType.UINT32, ValueType.ARRAY
SIGN, SIGN1, SCALE = f"{EMBD}.dq_sign", f"{Q}.dq_sign1", f"{EMBD}.dq_scale"

MALFORMED: dict[str, tuple[Edit, str]] = {
    # 1: GGUF
    "gguf version": (lambda e: setattr(e, "version", 4), "GGUF version 4, expected 3"),
    "gguf version 2": (lambda e: setattr(e, "version", 2), "GGUF version 2, expected 3"),
    "big endian": (lambda e: setattr(e, "version", 3 << 24), "big-endian"),
    "unknown type id": (set_tensor(SIGN, type_id=142), "unknown type id 142"),
    "five dimensions": (set_tensor(SIGN, ne=(8, 40, 1, 1, 1)), "5 dimensions, expected at most 4"),
    "zero dimension": (set_tensor(SIGN, ne=(8, 0)), "impossible shape 8x0"),
    "overflowing shape": (set_tensor(SIGN, ne=(1 << 32, 1 << 32)), "impossible shape"),
    "broken block": (set_tensor(f"{Q}.dq_u", ne=(31, 48)), "rows of 31, expected a multiple of 32"),
    "duplicate tensor": (lambda e: e.tensors.append(e.tensors[0]), f"tensor '{SIGN}' occurs twice"),
    # 2: what it is
    "no general.type": (drop_field("general.type"), "is a model .*, not a delta file"),
    "general.type": (set_field("general.type", "mmproj", STRING), "general.type is 'mmproj', expected 'adapter'"),
    "lora": (set_field("adapter.type", "lora", STRING), "is a LoRA adapter, not a delta file"),
    "adapter.type": (set_field("adapter.type", "x", STRING), "adapter.type is 'x', expected 'dqrelo'"),
    "newer version": (set_field("dqrelo.version", 2, U32), "version 2, expected 1. Update dqrelo-gguf"),
    "version 0": (set_field("dqrelo.version", 0, U32), "version 0, expected 1$"),
    "version's type": (set_field("dqrelo.version", 1, ValueType.UINT64), "dqrelo.version is 1, expected a UINT32"),
    "no version": (drop_field("dqrelo.version"), "dqrelo.version is None"),
    "missing key": (drop_field("dqrelo.base.digest"), "'dqrelo.base.digest' is missing"),
    "key's type": (set_field("dqrelo.ratio", 0.5, ValueType.FLOAT32), "type FLOAT32, expected FLOAT64"),
    "array's type": (
        set_field("dqrelo.weight.rank", [0] * 8, ARRAY, ValueType.UINT64),
        r"type \[UINT64\], expected \[UINT32\]",
    ),
    "optional key's type": (set_field("tokenizer.chat_template", 1, U32), "type UINT32, expected STRING"),
    "alignment 32": (set_field("general.alignment", 32, U32), "general.alignment is 32, expected 64"),
    "alignment 48": (set_field("general.alignment", 48, U32), "expected a power of two"),
    "alignment 0": (set_field("general.alignment", 0, U32), "expected a power of two"),
    "no alignment": (drop_field("general.alignment"), "'general.alignment' is missing"),
    "token id": (set_field("tokenizer.ggml.eos_token_id", 1 << 31, U32), "expected a token id under 2\\^31"),
    "changed tokens' type": (
        set_field("dqrelo.token.ids", ["a"], ARRAY, STRING),
        r"type \[STRING\], expected \[UINT32\]",
    ),
    # 3: array lengths
    "changed tokens": (set_field("dqrelo.token.ids", [5], ARRAY, U32), r"\[1, 0, 0\] entries, expected equal numbers"),
    "short names": (lambda e: e.fields["dqrelo.tensor.names"].value.pop(), "has 33 items, expected 34"),
    "short ne": (lambda e: e.fields["dqrelo.tensor.ne"].value.pop(), "has 135 items, expected 136"),
    "short ranks": (lambda e: e.fields["dqrelo.weight.rank"].value.pop(), "has 7 items, expected 8"),
    "short samples": (lambda e: e.fields["dqrelo.base.samples"].value.pop(), "has 191 items, expected 192"),
    "other names": (set_item("dqrelo.tensor.names", 1, "x"), r"names\[1\] is 'x', but tensor 1 of the file is"),
    "no weights": (empty_weights, "changes no weight"),
    "digest": (set_item("dqrelo.tensor.sha256", 2, "abc"), r"sha256\[2\] is 'abc', expected 64"),
    "content hash": (set_field("dqrelo.content_hash", "A" * 64, STRING), "expected 64 lower-case hex digits"),
    # 4: tensors of weights
    "weight twice": (set_item("dqrelo.weight.names", 1, EMBD), f"weight '{EMBD}' is declared twice"),
    "left over": (drop_last_weight, "'blk.0.attn_q.bias.dq_dense' belongs to no declared weight"),
    "missing scale": (drop_tensor(SCALE), f"tensor '{SCALE}' is missing"),
    "missing u": (drop_tensor(f"{EMBD}.dq_u"), f"tensor '{EMBD}.dq_u' is missing"),
    "missing last": (drop_tensor("blk.0.attn_q.bias.dq_dense"), "'blk.0.attn_q.bias.dq_dense' is missing"),
    "stray name": (rename_tensor(0, "token_embd.weight.dq_bits"), f"tensor '{SIGN}' is missing"),
    "swapped": (swap_tensors(0, 1), f"tensor '{SIGN}' is out of order, '{SCALE}' is in its place"),
    "declared type": (set_item("dqrelo.tensor.types", 0, "DQ_SCALE"), "is declared DQ_SCALE, expected DQ_SIGN"),
    "logical shape": (set_item("dqrelo.tensor.ne", 0, 8), "is declared with shape 8x40x1x1, expected 64x40x1x1"),
    "stored type": (set_tensor(SIGN, type_id=int(Type.F16), ne=(4, 40)), "is stored as f16, expected i8"),
    "factor's type": (set_tensor(f"{EMBD}.dq_u", type_id=int(Type.I16)), "type i16, expected f16, bf16"),
    "dense type": (set_tensor("blk.0.attn_q.bias.dq_dense", type_id=int(Type.I16)), "type i16, expected f32, f16"),
    "stored shape": (set_tensor(SIGN, ne=(40, 8)), "has shape 40x8, expected 8x40"),
    "scale's shape": (set_tensor(SCALE, ne=(2,)), "has shape 2, expected 40"),
    "rank too large": (set_item("dqrelo.weight.rank", 0, 4), "'token_embd.weight.dq_u' has shape 3x40, expected 4x40"),
    "rank over the shape": (
        set_item("dqrelo.weight.rank", 0, 41),
        "rank 41, expected at most 40, the smaller side of 64x40",
    ),
    "rank 0": (set_item("dqrelo.weight.rank", 0, 0), f"out of order, '{EMBD}.dq_u' is in its place"),
    "rank of a quantised u": (set_item("dqrelo.weight.rank", 1, 31), "rows of 31, expected a multiple of 32"),
    "planes": (set_item("dqrelo.weight.n_planes", 0, 2), "'token_embd.weight.dq_sign1' is missing"),
    "five planes": (set_item("dqrelo.weight.n_planes", 0, 5), "5 sign planes, expected 1 to 4"),
    "no planes": (set_item("dqrelo.weight.n_planes", 0, 0), "a dense weight has no planes, factors"),
    "weight's shape": (set_item("dqrelo.weight.ne", 1, 41), "has shape 8x40, expected 8x41"),
    "weight without columns": (set_item("dqrelo.weight.ne", 0, 0), "impossible shape 0x40x1x1"),
    "odd rows": (set_item("dqrelo.weight.ne", 0, 60), "rows of a multiple of 8"),
    "four dimensions": (set_item("dqrelo.weight.ne", 3, 2), "2 or 3 dimensions"),
    "weight overflows": (set_item("dqrelo.weight.ne", 1, 1 << 62), "too many elements"),
    # 5: offsets
    "odd offset": (set_tensor(SCALE, offset=321), "begins at byte 321 of the data, expected a multiple of 64"),
    "overlap": (set_tensor(SCALE, offset=256), f"'{SCALE}' overlaps the tensor before it"),
    "gap": (lambda e: [vars(t).update(offset=t.offset + 64) for t in e.tensors[3:-4]], "leaves a gap before it"),
    "outside": (set_tensor("blk.0.attn_q.bias.dq_dense", offset=1 << 40), r"ends at byte \d+, file has \d+ bytes"),
    "truncated": (lambda e: e.data.__delitem__(slice(-80, None)), "'blk.0.attn_q.bias.dq_dense' ends at byte"),
    # 6: scales
    "nan scale": (set_scale(SCALE, float("nan")), f"'{SCALE}' has 1 scales that are NaN or infinite"),
    "infinite cscale": (set_scale("blk.0.attn_k.weight.dq_cscale", float("-inf")), "dq_cscale' has 1 scales"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_in_one_line(small_delta: Path, tmp_path: Path, case: str) -> None:
    edit, message = MALFORMED[case]
    edited = Edited(small_delta)
    edit(edited)
    with pytest.raises(FormatError, match=message) as caught:
        DeltaReader(edited.save(tmp_path / "bad.dq.gguf"))
    text = str(caught.value)
    assert text.startswith("bad.dq.gguf: ")
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
    end = len(raw) - 64 * 6  # behind that, only the last tensor's padding is cut
    for n in [*range(0, len(raw) - end, 1), *range(0, end, 7)]:
        (tmp_path / "cut.dq.gguf").write_bytes(raw[:n])
        with pytest.raises(FormatError):
            DeltaReader(tmp_path / "cut.dq.gguf")


def test_random_damage_never_ends_in_another_exception(tmp_path: Path) -> None:
    write_delta(tmp_path / "whole.dq.gguf", [SPECS[2], SPECS[6]], meta())
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
    assert n_refused > 500  # most of the file is header


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.dq.gguf: no such file or directory"):
        DeltaReader(tmp_path / "none.dq.gguf")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        DeltaReader(tmp_path)


def test_options_must_be_json(small_delta: Path, tmp_path: Path) -> None:
    edited = Edited(small_delta)
    edited.fields["dqrelo.options"] = GGUFValue("--ratio 1/8", ValueType.STRING)
    reader = DeltaReader(edited.save(tmp_path / "a.dq.gguf"))
    with pytest.raises(FormatError, match="not a JSON object"):
        _ = reader.options
