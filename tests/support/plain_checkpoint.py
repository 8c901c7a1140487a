"""A Llama GGUF as a Hugging Face directory, for programs that know nothing of GGUF."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.support.models import Floats, read_gguf

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_checkpoint(gguf_file: Path, like: Path, target: Path) -> Path:
    """Writes the weights of a GGUF in F32.

    Args:
        gguf_file: a Llama model of any type.
        like: a directory of the same architecture, whose other files are taken.
        target: the new directory.
    """
    shutil.copytree(like, target, ignore=shutil.ignore_patterns("*.safetensors"))
    file = target / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"torch_dtype": "float32"}))
    n_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state = {}
    for name, weight in read_gguf(gguf_file).items():
        block, own = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()  # type: ignore[union-attr]
        values = _unpermuted(weight, n_heads[own]) if own in n_heads else weight
        prefix = "" if block is None else f"model.layers.{block}."
        state[f"{prefix}{_NAMES[own]}.weight"] = torch.from_numpy(np.array(values, np.float32))
    save_file(state, target / "model.safetensors", {"format": "pt"})
    return target


def _unpermuted(weight: Floats, n_head: int) -> Floats:
    """The rows of a head in the order of transformers: llama.cpp's conversion pairs the two halves of each."""
    n_out, n_in = weight.shape
    return weight.reshape(n_head, n_out // n_head // 2, 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)
