"""Tiny Hugging Face models made with transformers, fine-tunes of them, and their base GGUF through the pin's conversion."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf._pin import conversion_module, gguf
from tests.support.gguf_files import copy_metadata, finish

EXAMPLES = Path(__file__).parents[2] / "examples" / "tiny"
N_VOCAB = 640  # size of the tokenizer's vocabulary in examples/tiny

Floats = npt.NDArray[np.float32]

# What all pico models have in common, in transformers' words.
_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

# By name: configuration class, model class, and what differs.
_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),  # It has biases of q, k and v.
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"pad_token_id": 0}),  # Its norms are stored minus one.
    "gemma3": (  # It has a layer with a sliding window.
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "pad_token_id": 0,
            "head_dim": 16,
            "sliding_window": 32,
            "max_position_embeddings": 1024,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3next": (  # It has a linear-attention layer, whose value heads are reordered, and experts that can be fused.
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def save_model(path: Path, kind: str = "llama", seed: int = 0, max_shard_size: str = "1GB", **sizes: int) -> Path:
    """A model with random weights as a Hugging Face directory, bf16, with the tokenizer of examples/tiny.

    Args:
        path: the new directory.
        kind: a key of _KINDS.
        seed: of the weights.
        max_shard_size: as for save_pretrained.
        sizes: configuration values that differ from the kind's.
    """
    import transformers

    config_name, model_name, differs = _KINDS[kind]
    config = getattr(transformers, config_name)(**{**_SIZES, **differs, **sizes})
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config)
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size=max_shard_size)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "base" / file, path)
    return path


def randomise(model: torch.nn.Module) -> None:
    """Random weights under which activations keep their size from layer to layer; torch's own seed decides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and any(part in name for part in ("norm", "ln_"))
            scale = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(std=scale).add_(float(is_norm and not name.endswith("bias")))


def tune(source: Path, target: Path, amount: float = 0.2, seed: int = 1) -> Path:
    """A copy of a single-file model with every weight changed by about `amount` of its size."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    file = target / "model.safetensors"
    changed = {}
    for name, weight in load_file(file).items():
        noise = torch.randn(weight.shape, generator=generator)
        changed[name] = (weight.float() + amount * weight.float().std() * noise).to(weight.dtype)
    save_file(changed, file, {"format": "pt"})
    return target


def convert_hf(source: Path, target: Path, file_type: str = "MOSTLY_F16", **options: Any) -> Path:
    """What convert_hf_to_gguf.py writes for a directory."""
    conversion = conversion_module()
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    with torch.inference_mode():
        hparams = conversion.ModelBase.load_hparams(source, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        model_class = conversion.get_model_class(architecture)
        if model_class.supports_mtp_export:
            # It runs as with --no-mtp, because no model here has such layers, and without a vocabulary: these models
            # have BPE tokenizers, which the conversion knows by their hashes.
            attributes = {"no_mtp": True, "model_arch": model_class.model_arch, "set_vocab": lambda _: None}
            model_class = type(model_class.__name__, (model_class,), attributes)
        model_class(source, gguf.LlamaFileType[file_type], target, **options).write()
    return target


def read_gguf(path: Path) -> dict[str, Floats]:
    """All tensors of a GGUF, dequantised by gguf itself."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in gguf.GGUFReader(path).tensors
    }


def rewrite_gguf(
    source: Path,
    target: Path,
    change: dict[str, Floats | None] | None = None,
    types: dict[str, str] | None = None,
    fields: dict[str, Any] | None = None,
    *,
    added_template: str | None = None,
) -> Path:
    """A copy of a GGUF with some tensors changed, added or (None) left out, and some metadata replaced.

    Args:
        source: the file to copy.
        target: the copy.
        change: new values by name; tensors are F32 unless `types` says otherwise.
        types: GGUF type names by tensor name, "" for all others; they keep their type if it is not given.
        fields: new values of existing metadata keys, or None to leave one out.
        added_template: a chat template.
    """
    reader = gguf.GGUFReader(source)
    change, types, fields = change or {}, types or {}, fields or {}
    writer = gguf.GGUFWriter(target, "", use_temp_file=False)
    writer.data_alignment = reader.alignment
    copy_metadata(reader, writer, fields)
    if added_template is not None:
        writer.add_chat_template(added_template)
    tensors: dict[str, Any] = {t.name: t for t in reader.tensors}
    for name in [*tensors, *(n for n in change if n not in tensors)]:
        values = change.get(name, ...)
        if values is None:
            continue
        old = tensors.get(name)
        default = "F32" if values is not ... else old.tensor_type.name
        t = gguf.GGMLQuantizationType[types.get(name, types.get("", default))]
        if values is ...:
            values = gguf.quants.dequantize(old.data, old.tensor_type)
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values, np.float32), t), raw_dtype=t)
    finish(writer)
    return target


def tuned_gguf(base: Path, target: Path, amount: float = 0.2, seed: int = 1) -> Path:
    """A fine-tune of a GGUF, F32: every weight changed by about `amount` of its size."""
    rng = np.random.default_rng(seed)
    change: dict[str, Floats | None] = {}
    for name, weight in read_gguf(base).items():
        change[name] = (weight + amount * weight.std() * rng.standard_normal(weight.shape)).astype(np.float32)
    return rewrite_gguf(base, target, change)


def split_gguf(source: Path, directory: Path, n_shards: int = 3) -> Path:
    """A GGUF as shards; returns the first one."""
    reader = gguf.GGUFReader(source)
    n_each = -(-len(reader.tensors) // n_shards)
    writer = gguf.GGUFWriter(None, "", split_max_tensors=n_each)
    copy_metadata(reader, writer)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(writer, directory / "split.gguf")
    return directory / f"split-00001-of-{n_shards:05d}.gguf"


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- made once a test run ---


@functools.cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="dqrelo-models-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def pico(kind: str) -> Path:
    """A base as a Hugging Face directory."""
    return save_model(_directory() / kind, kind)


@functools.cache
def pico_tuned(kind: str) -> Path:
    """A fine-tune of `pico(kind)` as a Hugging Face directory."""
    return tune(pico(kind), _directory() / f"{kind}-tuned")


@functools.cache
def pico_gguf(kind: str) -> Path:
    """`pico(kind)` as the pin converts it."""
    return convert_hf(pico(kind), _directory() / f"{kind}-f16.gguf")


@functools.cache
def pico_tuned_gguf(kind: str) -> Path:
    """`pico_tuned(kind)` as the pin converts it to F32."""
    return convert_hf(pico_tuned(kind), _directory() / f"{kind}-tuned-f32.gguf", "ALL_F32")
