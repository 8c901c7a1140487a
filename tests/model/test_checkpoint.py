"""checkpoint: a Hugging Face directory gives the tensors and metadata that llama.cpp's conversion would write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dqrelo_gguf._pin import conversion_module, gguf
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.checkpoint import HfCheckpoint, open_checkpoint
from dqrelo_gguf.model.lazy_tensors import evaluate
from tests.support.models import convert_hf, pico, pico_gguf, pico_tuned, pico_tuned_gguf, read_gguf, save_model

KINDS = ["llama", "llama-tied", "qwen2", "gemma", "mixtral", "qwen3next"]


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(1) as b:
        yield b


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_equal_the_conversion(kind: str, blocks: Blocks) -> None:
    expected = read_gguf(pico_tuned_gguf(kind))
    checkpoint = HfCheckpoint(pico_tuned(kind), GgufModel(pico_gguf(kind)))
    assert {name: tuple(reversed(ne)) for name, ne in checkpoint.shapes.items()} == {
        name: values.shape for name, values in expected.items()
    }
    for name, values in expected.items():
        loaded = checkpoint.load(name, blocks)
        assert loaded.flags.writeable
        assert np.array_equal(loaded, values), name
        loaded += 1
        assert np.array_equal(checkpoint.load(name, blocks), values), "a second load must not see changes to the first"


def test_metadata_equals_the_conversion() -> None:
    expected = GgufModel(pico_tuned_gguf("llama"))
    checkpoint = HfCheckpoint(pico_tuned("llama"), GgufModel(pico_gguf("llama")))
    assert checkpoint.architecture == "llama"
    keys = ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "general.name", "llama.rope.freq_base"]
    for key in keys:
        ours, theirs = checkpoint.field(key), expected.field(key)
        assert ours is not None
        assert theirs is not None
        assert (ours.value, ours.type) == (theirs.value, theirs.type)
    assert checkpoint.field("no.such.key") is None


def test_fused_base_shows_how_to_convert(tmp_path: Path, blocks: Blocks) -> None:
    base = convert_hf(pico("qwen2"), tmp_path / "fused.gguf", "MOSTLY_F16", fuse_qkv=True)
    expected = read_gguf(convert_hf(pico_tuned("qwen2"), tmp_path / "t.gguf", "ALL_F32", fuse_qkv=True))
    checkpoint = HfCheckpoint(pico_tuned("qwen2"), GgufModel(base))
    assert set(checkpoint.shapes) == set(expected) == set(GgufModel(base).shapes)
    assert "blk.0.attn_qkv.weight" in expected
    for name, values in expected.items():
        assert np.array_equal(checkpoint.load(name, blocks), values), name


def test_fused_experts(tmp_path: Path, blocks: Blocks) -> None:
    base = convert_hf(pico("qwen3next"), tmp_path / "fused.gguf", "MOSTLY_F16", fuse_gate_up_exps=True)
    expected = read_gguf(convert_hf(pico_tuned("qwen3next"), tmp_path / "t.gguf", "ALL_F32", fuse_gate_up_exps=True))
    checkpoint = HfCheckpoint(pico_tuned("qwen3next"), GgufModel(base))
    assert set(checkpoint.shapes) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(checkpoint.load(name, blocks), values), name


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = save_model(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    return path


def test_shards_read_like_one_file(sharded: Path, blocks: Blocks) -> None:
    base = GgufModel(pico_gguf("llama"))
    one, many = HfCheckpoint(pico("llama"), base), HfCheckpoint(sharded, base)
    assert dict(one.shapes) == dict(many.shapes)
    for name in one.shapes:
        assert np.array_equal(one.load(name, blocks), many.load(name, blocks))


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shard_is_named(with_index: bool, sharded: Path) -> None:
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=f"shard '{gone.name}' is missing"):
        open_checkpoint(sharded, GgufModel(pico_gguf("llama")))


@pytest.mark.parametrize("n_left", [-1, -5000, 3, 40, 0])
def test_truncated_shard_is_named(n_left: int, sharded: Path) -> None:
    cut = sorted(sharded.glob("model-*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:n_left])
    with pytest.raises(InputError, match=rf"{cut.name}: has \d+ bytes.* Truncated download"):
        open_checkpoint(sharded, GgufModel(pico_gguf("llama")))


@pytest.mark.parametrize("header", [b"not json", b'{"w": 5}', b"[1]", b'{"w": {"data_offsets": [0]}}'])
def test_malformed_header_is_named(header: bytes, tmp_path: Path) -> None:
    path = shutil.copytree(pico("llama"), tmp_path / "m")
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model\.safetensors: is not a safetensors file"):
        open_checkpoint(path, GgufModel(pico_gguf("llama")))


def test_malformed_index_is_named(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": []}))
    with pytest.raises(InputError, match="is not an index"):
        open_checkpoint(sharded, GgufModel(pico_gguf("llama")))


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        open_checkpoint(tmp_path, GgufModel(pico_gguf("llama")))


def test_lora_directory(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("")
    with pytest.raises(InputError, match="is a LoRA adapter"):
        open_checkpoint(tmp_path, GgufModel(pico_gguf("llama")))


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        open_checkpoint(tmp_path / "nowhere", GgufModel(pico_gguf("llama")))


def test_what_the_conversion_raises_is_one_line(tmp_path: Path) -> None:
    path = shutil.copytree(pico("llama"), tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(InputError, match=r"llama\.cpp's conversion cannot open this model.*NoSuchModel"):
        open_checkpoint(path, GgufModel(pico_gguf("llama")))


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer.model", None, "m: has no tokenizer (tokenizer.json, tokenizer.model, vocab.json, ...). Copy"),
        ("tokenizer.model", b"", "tokenizer.model: is empty. Truncated download?"),
        ("tokenizer_config.json", b'{"a": ', "tokenizer_config.json: is not JSON (Expecting value"),
        ("config.json", b"{}", "config.json: names no class (architectures), expected one such as LlamaForCausalLM"),
    ],
)
def test_damaged_description_is_named(file: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = shutil.copytree(pico("llama"), tmp_path / "m")
    (path / file).unlink(missing_ok=True)
    if content is not None:
        (path / file).write_bytes(content)
    with pytest.raises(InputError) as e:
        open_checkpoint(path, GgufModel(pico_gguf("llama"))).field("tokenizer.ggml.tokens")
    assert str(e.value).startswith(str(path))
    assert expected in str(e.value)


def test_what_lies_beside_a_model_is_not_blamed(tmp_path: Path) -> None:
    """Of files that the conversion does not read, or does without, a failure says nothing."""
    path = shutil.copytree(pico("llama"), tmp_path / "m")
    for name in ("trainer_state.json", "generation_config.json"):
        (path / name).write_text("{")
    (path / "notes.txt").touch()
    (path / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(InputError, match="cannot read the hyperparameters and the tokenizer of this model"):
        open_checkpoint(path, GgufModel(pico_gguf("llama"))).field("tokenizer.ggml.tokens")


def test_gguf_fine_tune(blocks: Blocks) -> None:
    checkpoint = open_checkpoint(pico_tuned_gguf("llama"), GgufModel(pico_gguf("llama")))
    assert isinstance(checkpoint, GgufModel)
    assert checkpoint.load("output_norm.weight", blocks).shape == (64,)


def test_evaluate_shares_a_node_that_is_used_twice() -> None:
    lazy_torch = conversion_module().LazyTorchTensor
    loads = []

    def load(_: object) -> torch.Tensor:
        loads.append(1)
        return torch.arange(6.0).reshape(2, 3)

    source = lazy_torch(meta=torch.empty((2, 3), device="meta"), args=(None,), func=load)
    lazy = (torch.cat([source, source * 2]).T.contiguous() + source.sum()).numpy()
    expected = torch.cat([torch.arange(6.0).reshape(2, 3)] * 2) * torch.tensor([1.0, 1, 2, 2])[:, None]
    assert np.array_equal(evaluate(lazy), expected.T.numpy() + 15)
    assert len(loads) == 1
    assert np.array_equal(evaluate(lazy), expected.T.numpy() + 15), "nothing may be kept or used up"
    assert len(loads) == 2


def test_evaluate_chunks() -> None:
    chunks = [lambda i=i: np.full((2, 4), i, np.float16) for i in range(3)]
    lazy = gguf.LazyChunkedTensor(chunks, (6, 4), np.float16)
    assert evaluate(lazy)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
