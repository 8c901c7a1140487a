"""LoRA adapters made on the spot, as PEFT and llama.cpp's convert_lora_to_gguf.py write them, and what they stand for."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dqrelo_gguf._pin import conversion_script

Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model."
RANK, ALPHA = 4, 8
# The adapter's part of a weight, by size.
AMOUNT = 0.3


def projections(model: Path, pattern: Callable[[str], bool] = lambda _: True) -> list[str]:
    """The matrices of a Hugging Face directory that a LoRA of all linear layers adapts: its modules' names."""
    weights = load_file(model / "model.safetensors")
    return [
        name.removesuffix(".weight")
        for name, w in weights.items()
        if name.endswith(".weight") and w.dim() == 2 and not any(x in name for x in ("embed", "lm_head", "wte", "wpe"))
        if pattern(name)
    ]


def write_adapter(
    path: Path,
    model: Path,
    modules: list[str],
    *,
    ranks: Mapping[str, int] | None = None,
    extra: Tensors | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Writes a LoRA of random factors for some modules, as PEFT does.

    Args:
        path: the new directory.
        model: the Hugging Face directory that it is for.
        modules: their names.
        ranks: of those whose rank is not RANK.
        extra: tensors beside the factors, without the prefix.
        dtype: of the factors.
        seed: of them.
        config: values of adapter_config.json.
    """
    weights, generator = load_file(model / "model.safetensors"), torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for module in modules:
        weight = weights[f"{module}.weight"].float()
        n_out, n_in = reversed(weight.shape) if config.get("fan_in_fan_out") else weight.shape
        rank = (ranks or {}).get(module, RANK)
        a = torch.randn((rank, n_in), generator=generator)
        b = torch.randn((n_out, rank), generator=generator)
        b *= AMOUNT * weight.std() / (ALPHA / RANK * (b @ a).std())
        is_embedding = module.endswith("embed_tokens")
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        pair = (b.T, a.T) if is_embedding else (a, b)
        for name, tensor in zip(names, pair, strict=True):
            tensors[f"{PREFIX}{module}.{name}"] = tensor.to(dtype).contiguous()
    tensors |= {PREFIX + name: tensor for name, tensor in (extra or {}).items()}
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "fan_in_fan_out": False, **config}
    (path / "adapter_config.json").write_text(json.dumps(values))
    return path


def merged_directory(
    model: Path, adapter: Path, target: Path, scale: Callable[[str, int], float] = lambda _, r: ALPHA / r
) -> Path:
    """The base with an adapter in its weights, by the definition of a LoRA: W + scale B A, in F32.

    Args:
        model: the base.
        adapter: PEFT's directory.
        target: the new directory.
        scale: of a module with a rank.
    """
    shutil.copytree(model, target)
    weights = {name: w.float() for name, w in load_file(model / "model.safetensors").items()}
    tensors = {n.removeprefix(PREFIX): t.float() for n, t in load_file(adapter / "adapter_model.safetensors").items()}
    is_turned = json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"]
    for name, a in tensors.items():
        module, _, part = name.partition(".lora_")
        if part in ("A.weight", "embedding_A"):
            b = tensors[f"{module}.lora_{part.replace('A', 'B')}"]
            change = scale(module, a.shape[0]) * (b @ a)
            weights[f"{module}.weight"] += change.T if is_turned or "embedding" in part else change
        elif not part:
            weights[name] = a
    save_file({n: w.contiguous() for n, w in weights.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def upstreams_gguf(adapter: Path, model: Path, target: Path) -> Path:
    """What the pin's convert_lora_to_gguf.py writes for PEFT's directory."""
    script = conversion_script().with_name("convert_lora_to_gguf.py")
    command = [sys.executable, script, adapter, "--base", model, "--outfile", target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    return target


def root_scale(_: str, rank: int) -> float:
    """rsLoRA's."""
    return ALPHA / math.sqrt(rank)
