"""weight_headers: what is no plain model's weight file is refused by its header, with the cause and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.weight_files import find_weight_files
from dqrelo_gguf.model.weight_headers import check_weight_headers

W = "model.layers.0.self_attn.q_proj.weight"
BYTES = {"BF16": 2, "F32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F4": 1, "I32": 4}


def write(path: Path, tensors: dict[str, tuple[str, Any]], name: str = "model.safetensors") -> Path:
    header, at = {}, 0
    for tensor, (dtype, shape) in tensors.items():
        n_bytes = BYTES[dtype]
        for n in shape if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else [1]:
            n_bytes *= n
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + max(n_bytes, 0)]}
        at += max(n_bytes, 0)
    raw = json.dumps(header).encode()
    (path / name).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))
    return path


def check(path: Path, config: dict[str, Any] | None = None) -> None:
    check_weight_headers(path, find_weight_files(path), config or {})


def refusal(path: Path, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as e:
        check(path, config)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_plain_model_passes(tmp_path: Path) -> None:
    check(write(tmp_path, {W: ("BF16", [2, 4]), "model.norm.weight": ("F32", [4]), "scalar": ("F32", [])}))


@pytest.mark.parametrize("shape", [[0], [0, 4], [4, 0]])
def test_weights_that_zero_3_left_empty(shape: list[int], tmp_path: Path) -> None:
    assert "ZeRO-3" in refusal(write(tmp_path, {W: ("BF16", shape)}))


@pytest.mark.parametrize("shape", [[-1], ["4"], [True], [2.0], 4, [1 << 63], [1] * 9, [1 << 61, 1 << 61]])
def test_shape_that_is_none(shape: Any, tmp_path: Path) -> None:
    raw = json.dumps({W: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    assert f"tensor '{W}' has" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("_orig_mod.", "torch.compile"),
        ("model._orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "wrapper"),
        ("model.layers.0._checkpoint_wrapped_module.", "wrapper"),
        ("base_model.model.", "PEFT"),
    ],
)
def test_prefix_of_a_wrapper_is_named(prefix: str, word: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {prefix + W: ("BF16", [2, 4])}))
    assert word in message
    assert "save" in message.lower()


@pytest.mark.parametrize(
    "name", [W.replace(".weight", ".lora_A.weight"), W.replace(".weight", ".base_layer.weight"), "lm_head.modules_to_save.default.weight"]
)  # fmt: skip
def test_adapter_inside_the_model_is_named(name: str, tmp_path: Path) -> None:
    assert "merge_and_unload" in refusal(write(tmp_path, {name: ("BF16", [2, 4])}))


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        (".SCB", "bitsandbytes"),
        (".weight.absmax", "bitsandbytes"),
        (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        (".qweight", "GPTQ or AWQ"),
        (".qzeros", "GPTQ or AWQ"),
        (".weight_scale", "fp8"),
        (".weight_scale_inv", "fp8"),
        (".weight_packed", "compressed-tensors"),
        (".W_q", "HQQ"),
    ],
)
def test_leftovers_of_quantisation_are_named(suffix: str, method: str, tmp_path: Path) -> None:
    path = write(tmp_path, {W: ("BF16", [2, 4]), W.removesuffix(".weight") + suffix: ("F32", [2])})
    message = refusal(path)
    assert method in message
    assert "no quantization_config" in message


@pytest.mark.parametrize(
    "config",
    [{"quant_method": "bitsandbytes"}, {"load_in_4bit": True}, {"quant_method": "awq"}, {"quant_method": "hqq"}],
)
def test_quantisation_that_nobody_reads_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {W: ("BF16", [2, 4])}), {"quantization_config": config})
    assert config.get("quant_method", "bitsandbytes") in message


def test_type_that_nobody_reads_is_named(tmp_path: Path) -> None:
    assert "has type F4" in refusal(write(tmp_path, {W: ("F4", [2, 4])}))


@pytest.mark.parametrize("change", ["renamed", "added"])
def test_index_of_another_save_is_named(change: str, tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    write(tmp_path, {W: ("BF16", [2, 4]), "b": ("BF16", [1])}, name)
    index = {W: name, "a": name} if change == "renamed" else {W: name}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "model.safetensors.index.json is stale" in refusal(tmp_path)


def test_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    for i in (1, 2):
        write(tmp_path, {W: ("BF16", [2, 4])}, f"model-0000{i}-of-00002.safetensors")
    assert f"'{W}' is in another file, too" in refusal(tmp_path)


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({W: torch.zeros(2, 4)}, None),
        ({"model": {W: torch.zeros(2, 4)}, "optimizer": {}}, "is not a model's state dict, it holds model, optimizer"),
        ([torch.zeros(1)], "is not a model's state dict"),
        ({"code": Code()}, "holds more than tensors"),
        ({"module." + W: torch.zeros(2, 4)}, "DistributedDataParallel"),
        ({W: torch.zeros(0)}, "ZeRO-3"),
    ],
)
def test_bin_files(content: Any, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    if message is None:
        check(tmp_path)
    else:
        assert message in refusal(tmp_path)
    assert capsys.readouterr().out == ""


def test_bin_files_of_old_and_broken_forms(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({W: torch.zeros(2, 4)}, path, _use_new_zipfile_serialization=False)
    assert "save it with save_pretrained" in refusal(tmp_path)
    torch.save({W: torch.zeros(64, 4)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "Truncated download" in refusal(tmp_path)
