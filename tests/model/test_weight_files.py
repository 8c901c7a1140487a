"""weight_files: the files that transformers would load count, and what could mean another set is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.weight_files import find_weight_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def make(path: Path, *names: str, index: dict[str, str] | None = None, index_name: str = INDEX) -> Path:
    for name in names:
        (path / name).write_bytes(b"")
    if index is not None:
        (path / index_name).write_text(json.dumps({"weight_map": index}))
    return path


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        ([SINGLE], None, [SINGLE]),
        ([SINGLE], {"a": SINGLE}, [SINGLE]),
        ([SINGLE, "model_ema.safetensors"], None, [SINGLE]),
        ([SINGLE, "model.fp16.safetensors", "pytorch_model.bin"], None, [SINGLE]),
        (SHARDS, {"a": SHARDS[0], "b": SHARDS[1]}, SHARDS),
        ([*SHARDS, "model_ema.safetensors"], {"a": SHARDS[0], "b": SHARDS[1]}, SHARDS),
        ([*SHARDS, "model-00001-of-00001.safetensors"], {"a": SHARDS[0], "b": SHARDS[1]}, SHARDS),
        (SHARDS, None, SHARDS),
        (["pytorch_model.bin", "pytorch_model_ema.bin"], None, ["pytorch_model.bin"]),
        (["pytorch_model.bin", SINGLE], None, [SINGLE]),
    ],
)
def test_files_that_transformers_loads_count(
    names: list[str], index: dict[str, str] | None, expected: list[str], tmp_path: Path
) -> None:
    files = find_weight_files(make(tmp_path, *names, "optimizer.pt", "training_args.bin", index=index))
    assert files.names == expected
    assert files.ignored == sorted(set(names) - set(expected))


@pytest.mark.parametrize(
    ("names", "index", "message"),
    [
        (
            [SINGLE, *SHARDS],
            {"a": SHARDS[0], "b": SHARDS[1]},
            f"two sets of weights, {SINGLE} and {SHARDS[0]}, {SHARDS[1]}",
        ),
        ([SINGLE, SHARDS[0]], {"a": SHARDS[0], "b": SHARDS[1]}, f"two sets of weights, {SINGLE} and {SHARDS[0]}"),
        ([SINGLE, *SHARDS], None, f"two sets of weights, {SINGLE} and {SHARDS[0]}"),
        ([SINGLE], {"a": SHARDS[0], "b": SHARDS[1]}, f"{INDEX} is stale"),
        ([SINGLE, "ema.safetensors"], {"a": "ema.safetensors"}, f"two sets of weights, {SINGLE} and ema.safetensors"),
        ([*SHARDS, "model-00001-of-00001.safetensors"], None, "2 sets of weights"),
        (["model-00001-of-00001.safetensors"], {"a": SHARDS[0]}, f"{SHARDS[0]}' is missing.*{INDEX} is stale"),
        ([SINGLE, "adapter_config.json", "adapter_model.safetensors"], None, "two sets of weights, the adapter"),
        (["adapter_config.json", "adapter_model.safetensors"], None, "is a LoRA adapter"),
        ([SHARDS[1]], None, f"shard '{SHARDS[0]}' is missing, expected 2 files"),
        ([SINGLE], {"a": "../other/model.safetensors"}, "names the file '../other/model.safetensors'"),
        ([SINGLE], {}, "is not an index"),
    ],
)
def test_what_could_mean_another_set_is_refused(
    names: list[str], index: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as e:
        find_weight_files(make(tmp_path, *names, index=index))
    assert "\n" not in str(e.value)


def test_stale_index_of_the_other_format(tmp_path: Path) -> None:
    make(
        tmp_path,
        "pytorch_model.bin",
        index={"a": "pytorch_model-00001-of-00001.bin"},
        index_name="pytorch_model.bin.index.json",
    )
    with pytest.raises(InputError, match=r"pytorch_model\.bin\.index\.json is stale"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_ema.safetensors", "Name it model.safetensors"),
        ("global_step100", "DeepSpeed checkpoint. Run its zero_to_fp32.py"),
        ("__0_0.distcp", "distributed checkpoint"),
        ("checkpoint-500", "Give one of its checkpoints"),
        ("my-model.q8_0.gguf", "Give the GGUF itself"),
        ("consolidated.00.pth", "the form of their author"),
        ("tf_model.h5", "save it with save_pretrained"),
        ("notes.txt", "expected a Hugging Face model directory"),
    ],
)
def test_directory_without_weights_is_told_what_it_is(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has no model.safetensors.*{re.escape(message)}"):
        find_weight_files(make(tmp_path, name))


@pytest.mark.parametrize("name", [SINGLE, INDEX, "config.json", "tokenizer.model"])
def test_lfs_pointer_is_named(name: str, tmp_path: Path) -> None:
    make(tmp_path, SINGLE)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(InputError, match=f"{name}: is a Git LFS pointer.*git lfs pull"):
        find_weight_files(tmp_path)
