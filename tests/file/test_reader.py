"""DeltaReader: what it returns, digests, and files that are none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.errors import FormatError, InputError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.weight_data import WeightData
from tests.support.delta_files import SPECS, SPECS_2, SPECS_SPARSE, Edited, Type, write_delta
from tests.support.entries import literal_d_hat

Edit = Callable[[Edited], Any]

Q = "blk.0.attn_q.weight"
EMBD = "token_embd.weight"

# The sums are of at most 36 terms of at most 4 each in F32, in another order than here: 36 roundings of 36 * 4 * 2^-24.
SUM_TOLERANCE = 4e-4


# --- what it returns ---


def expected_d_hat(spec: WeightSpec, data: WeightData) -> np.ndarray[Any, Any]:
    """docs/format.md section 1, element by element in double precision; factors before they are stored."""
    if data.dense is not None:
        return data.dense
    if data.sparse is not None:
        return literal_d_hat(data.sparse, spec.ne[0])
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
        out[e] += codes_of(spec, data, e)
    return out.reshape(tuple(reversed(spec.ne)))


def codes_of(spec: WeightSpec, data: WeightData, e: int) -> np.ndarray[Any, Any] | float:
    """What the sign factors of matrix e mean, one code after the other."""
    codes = data.sign_factors
    if codes is None:
        return 0.0
    n_in, n_out = spec.ne[:2]
    v_bits, u_bits = (
        codes.v_bits.reshape(-1, spec.n_codes, n_in // 8)[e],
        codes.u_bits.reshape(-1, n_out, spec.n_codes // 8)[e],
    )
    v_scale, u_scale = np.atleast_2d(codes.v_scale)[e], np.atleast_2d(codes.u_scale)[e]
    A, B = np.zeros((n_out, spec.plane_ranks[0])), np.zeros((spec.plane_ranks[0], n_in))
    vector_of_code = [k for rank in spec.plane_ranks for k in range(rank)]
    for c, k in enumerate(vector_of_code):
        B[k] += v_scale[c] * np.array([1 if v_bits[c, j // 8] >> (j % 8) & 1 else -1 for j in range(n_in)])
        A[:, k] += u_scale[c] * np.array([1 if u_bits[i, c // 8] >> (c % 8) & 1 else -1 for i in range(n_out)])
    column = 1.0 if data.cscale is None else np.atleast_2d(data.cscale)[e]
    return A @ B * column


# Largest error of a stored factor's element, elements being at most 1: half a step of the type. 32 products at most.
FACTOR_STEP = {Type.F32: 0.0, Type.F16: 2**-12, Type.BF16: 2**-9, Type.Q8_0: 0.5 / 127, Type.Q4_0: 1 / 8}


@pytest.mark.parametrize("spec", SPECS + SPECS_2 + SPECS_SPARSE, ids=lambda spec: spec.name)
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


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = write_delta(tmp_path / "a.dq.gguf", SPECS_SPARSE)
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    reader.verify()
    for spec, info, data in zip(SPECS_SPARSE, reader.weights, written, strict=True):
        stored = reader.weight(spec.name).sparse
        assert (stored is None) == (data.sparse is None) == (info.n_entries == 0) == (spec.sparse is None)
        if stored is None or data.sparse is None or spec.sparse is None:
            continue
        assert (info.n_entries, info.entry_type) == (spec.sparse.n_entries, spec.sparse.type)
        for part, value in vars(data.sparse).items():
            found = getattr(stored, part)
            assert (found is None) == (value is None), part
            assert value is None or (found.dtype == value.dtype and np.array_equal(found, value)), part
        assert np.array_equal(reader.reconstruct(spec.name), literal_d_hat(data.sparse, spec.ne[0]))


def test_arrays_outlive_the_reader_and_the_file(small_delta: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.dq.gguf"
    path.write_bytes(small_delta.read_bytes())
    bits, _ = DeltaReader(path).weight(Q).planes[1]
    path.write_bytes(b"")
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
    n_removed = edited.tensors[i + 1].offset - start - 64  # 48 scales take 192 bytes, one takes 64.
    del edited.data[start + 64 : start + 64 + n_removed]
    edited.data[start + 4 : start + 64] = bytes(60)
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
    n_bytes = 8 * 40  # bytes of the first tensor: 40 rows of 64 signs
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dq.gguf")
    with pytest.raises(InputError, match=r"pipe.dq.gguf: is not a regular file"):
        DeltaReader(tmp_path / "pipe.dq.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.dq.gguf: no such file or directory"):
        DeltaReader(tmp_path / "none.dq.gguf")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        DeltaReader(tmp_path)
