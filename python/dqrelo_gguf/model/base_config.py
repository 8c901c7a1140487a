"""The configuration of a base as Hugging Face has it, from its GGUF: what llama.cpp's conversion needs of an adapter's base.

An adapter's directory does not have its base's config.json. The conversion takes from it which class names and permutes the
tensors, and the sizes that this depends on. For the architectures of the table every class of theirs treats an adapter's
tensors alike, so that the GGUF decides; for others the user gives a config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dqrelo_gguf.errors import BaseMismatchError, InputError, printable
from dqrelo_gguf.file.format import MODEL_TOKENS
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.directory import not_json
from dqrelo_gguf.model.vocabulary import EMBEDDING, OUTPUT

OPTION: Final = "--base-config"
_MAX_CONFIG_BYTES = 1 << 24
# By GGUF architecture, the class whose names and permutations an adapter of it has.
CLASSES: Final = MappingProxyType(
    {
        "gemma": "GemmaForCausalLM",
        "gemma2": "Gemma2ForCausalLM",
        "gemma3": "Gemma3ForCausalLM",
        "gpt2": "GPT2LMHeadModel",
        "granite": "GraniteForCausalLM",
        "llama": "LlamaForCausalLM",
        "olmo2": "Olmo2ForCausalLM",
        "phi3": "Phi3ForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen2moe": "Qwen2MoeForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "qwen3moe": "Qwen3MoeForCausalLM",
        "smollm3": "SmolLM3ForCausalLM",
        "starcoder2": "Starcoder2ForCausalLM",
    }
)
# Sizes that names and permutations depend on: the GGUF's key behind the architecture, and Hugging Face's names of it.
_SIZES: Final = (
    ("block_count", ("num_hidden_layers", "n_layer")),
    ("embedding_length", ("hidden_size", "n_embd")),
    ("feed_forward_length", ("intermediate_size",)),
    ("attention.head_count", ("num_attention_heads", "n_head")),
    ("attention.head_count_kv", ("num_key_value_heads",)),
    ("attention.key_length", ("head_dim",)),
    ("context_length", ("max_position_embeddings", "n_ctx")),
    ("expert_count", ("num_experts", "num_local_experts")),
    ("expert_used_count", ("num_experts_per_tok",)),
    ("expert_feed_forward_length", ("moe_intermediate_size",)),
)
# Of these the ones that must agree where a configuration is given.
_COMPARED: Final = frozenset({"block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"})


def base_config(base: GgufModel, given: Path | None, label: str) -> dict[str, Any]:
    """The configuration of the base.

    Args:
        base: the GGUF.
        given: a config.json or a directory that has one, instead of what the GGUF says; None for that.
        label: of the adapter, for messages.

    Raises:
        InputError: the architecture is not in the table and none is given, or what is given is no configuration.
        BaseMismatchError: what is given is another model's.
    """
    if given is not None:
        return _read_config(base, given / "config.json" if given.is_dir() else given)
    hf_class = CLASSES.get(base.architecture)
    if hf_class is None:
        raise InputError(
            f"{label}: how tensors of a '{base.architecture}' are named and permuted is in the config.json of its base. "
            f"Give it, or the directory that has it, with {OPTION}"
        )
    config: dict[str, Any] = {"architectures": [hf_class], "tie_word_embeddings": OUTPUT not in base.shapes}
    for key, names in _SIZES:
        value = _size(base, key)
        config |= {name: value for name in names if value is not None}
    config["vocab_size"] = base.shapes[EMBEDDING][1] if EMBEDDING in base.shapes else _n_tokens(base)
    return config


def _read_config(base: GgufModel, path: Path) -> dict[str, Any]:
    config = read_json(path, OPTION)
    text = config.get("text_config")
    sizes = {**config, **text} if isinstance(text, dict) else config
    for key, names in _SIZES:
        ours = _size(base, key)
        theirs = next((sizes[name] for name in names if sizes.get(name) is not None), None)
        if key in _COMPARED and None not in (ours, theirs) and ours != theirs:
            raise BaseMismatchError(
                f"{OPTION} {path}: {names[0]} is {printable(str(theirs))[:40]}, base {base.label} has {ours}. "
                "Is it the configuration of this base?"
            )
    return config


def read_json(path: Path, option: str = "") -> dict[str, Any]:
    """A JSON object from a small regular file.

    Raises:
        InputError: it is none.
    """
    require_file(path, option)
    where = f"{option} {path}".lstrip()
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InputError(f"{where}: has {path.stat().st_size} bytes, expected at most {_MAX_CONFIG_BYTES}")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(not_json(where, e)) from e
    if not isinstance(value, dict):
        raise InputError(f"{where}: is no JSON object")
    return value


def _size(base: GgufModel, key: str) -> int | None:
    """A size of the GGUF; one that differs from layer to layer decides no name."""
    field = base.field(f"{base.architecture}.{key}")
    return int(field.value) if field is not None and isinstance(field.value, int | float) else None


def _n_tokens(base: GgufModel) -> int:
    field = base.field(MODEL_TOKENS)
    return 0 if field is None else len(field.value)
