"""base: GGUF models of every type, whole and split, one dequantised weight at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.base import GgufModel, fold_scale_tensors
from tests.support.gguf_files import finish
from tests.support.models import Floats, read_gguf, split_gguf

Type = gguf.GGMLQuantizationType

# Every type that gguf can both quantise and dequantise.
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"]


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def weights(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path: Path, tensors: dict[str, tuple[Floats, str]], **extra: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    for name, (values, type_name) in tensors.items():
        t = Type[type_name]
        data = values.astype("<i4") if type_name == "I32" else gguf.quants.quantize(values, t)
        writer.add_tensor(name, data, raw_dtype=t)
    finish(writer)
    return path


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(3, 256), (5, 4, 512), (256,)])
def test_load_equals_gguf(type_name: str, shape: tuple[int, ...], tmp_path: Path, blocks: Blocks) -> None:
    path = write(tmp_path / "m.gguf", {"w": (weights(*shape), type_name), "z": (weights(8), "F32")})
    model = GgufModel(path)
    assert model.shapes["w"] == tuple(reversed(shape))
    loaded = model.load("w", blocks)
    assert loaded.flags.writeable
    assert loaded.shape == shape
    assert np.array_equal(loaded, read_gguf(path)["w"])


def test_large_weight_in_blocks(tmp_path: Path, blocks: Blocks) -> None:
    values = weights(4099, 256)
    path = write(tmp_path / "m.gguf", {"w": (values, "Q8_0")})
    assert np.array_equal(GgufModel(path).load("w", blocks), read_gguf(path)["w"])


def test_integers(tmp_path: Path, blocks: Blocks) -> None:
    path = write(tmp_path / "m.gguf", {"w": (np.arange(6, dtype=np.float32), "I32")})
    assert GgufModel(path).load("w", blocks).tolist() == [0, 1, 2, 3, 4, 5]


def test_load_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"w": (weights(3, 5, 64), "Q4_0")})
    rows = np.array([0, 4, 5, 14])
    assert np.array_equal(GgufModel(path).load_rows("w", rows), read_gguf(path)["w"].reshape(15, 64)[rows])


def test_split_file_reads_like_a_whole_one(tmp_path: Path, blocks: Blocks) -> None:
    whole = write(tmp_path / "m.gguf", {f"w{i}": (weights(4, 64, seed=i), "Q8_0") for i in range(7)}, general__name="x")
    first = split_gguf(whole, tmp_path)
    assert len(list(tmp_path.glob("split-*"))) == 3
    expected = GgufModel(whole)
    for shard in (first, first.with_name("split-00003-of-00003.gguf")):
        model = GgufModel(shard)
        assert dict(model.shapes) == dict(expected.shapes)
        assert model.name == "x"
        for name in model.shapes:
            assert np.array_equal(model.load(name, blocks), expected.load(name, blocks))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", {f"w{i}": (weights(4, 64), "F32") for i in range(6)})
    first = split_gguf(whole, tmp_path)
    first.with_name("split-00002-of-00003.gguf").unlink()
    with pytest.raises(InputError, match="split-00002-of-00003"):
        GgufModel(first)


def test_scale_of_a_weight_belongs_to_it(tmp_path: Path, blocks: Blocks) -> None:
    w, experts = weights(4, 64), weights(3, 4, 64, seed=1)
    path = write(
        tmp_path / "m.gguf",
        {
            "blk.0.attn_q.weight": (w, "F32"),
            "blk.0.attn_q.scale": (np.array([2.5], np.float32), "F32"),
            "blk.0.attn_q.input_scale": (np.array([9.0], np.float32), "F32"),
            "blk.0.ffn_up_exps.weight": (experts, "F32"),
            "blk.0.ffn_up_exps.scale": (np.array([1.0, 2.0, 4.0], np.float32), "F32"),
        },
    )
    model = GgufModel(path)
    assert list(model.shapes) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    assert np.array_equal(model.load("blk.0.attn_q.weight", blocks), w * np.float32(2.5))
    scaled = experts * np.array([1, 2, 4], np.float32)[:, None, None]
    assert np.array_equal(model.load("blk.0.ffn_up_exps.weight", blocks), scaled)
    rows = np.array([1, 4, 11])
    assert np.array_equal(model.load_rows("blk.0.ffn_up_exps.weight", rows), scaled.reshape(12, 64)[rows])


def test_scale_of_another_size_is_a_weight() -> None:
    shapes = {"a.weight": (64, 8), "a.scale": (64,), "b.scale": (1,)}
    assert fold_scale_tensors(shapes) == (shapes, {})


def test_visit_covers_every_row_once(tmp_path: Path, blocks: Blocks) -> None:
    path = write(tmp_path / "m.gguf", {"w": (weights(5000, 128), "F16")})
    seen = np.zeros(5000, int)
    model = GgufModel(path)
    model.visit("w", blocks, lambda s, values: seen.__setitem__(s, seen[s] + (values.shape == (s.stop - s.start, 128))))
    assert (seen == 1).all()


def test_adapter_as_base_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {"w": (weights(4, 64), "F32")}, general__type="adapter", adapter__type="lora")
    with pytest.raises(InputError, match=r"a\.gguf: is an adapter"):
        GgufModel(path)


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tensors"):
        GgufModel(write(tmp_path / "v.gguf", {}))


def test_type_that_gguf_cannot_dequantise_is_named(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", {"w": (weights(4, 64), "Q8_0")})

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(InputError, match=r"m\.gguf: tensor 'w' has type q8_0"):
        GgufModel(path).load("w", blocks)
