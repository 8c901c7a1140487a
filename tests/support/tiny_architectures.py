"""One tiny random model of each architecture, as transformers makes it, and fine-tunes of it: what a user's directory holds."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support import tiny_tokenizers
from tests.support.models import N_VOCAB, edit_json, randomise

N_LAYER = 2

# What most configurations call their sizes. Rows of 128 leave a delta of 1/8 room for its vectors.
_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_QWEN2VL = {
    "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 128, "num_heads": 2},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    "rms_norm_eps": 1e-6,
}
_SENTENCEPIECE = tiny_tokenizers.write_sentencepiece
_BYTE_PAIRS = tiny_tokenizers.write_byte_pairs


@dataclass(frozen=True)
class Fault:
    """What llama.cpp's conversion gets wrong about a directory of this architecture, so that dqrelo-convert must say so.

    Args:
        line: in the error of dqrelo-convert.
        why: for the table.
        hparams: what the conversion has to be told to get it right; None if nothing helps.
        transformers: the first major version with which it happens.
    """

    line: str
    why: str
    hparams: dict[str, Any] | None = None
    transformers: int = 0

    def happens(self) -> bool:
        import transformers

        return int(transformers.__version__.split(".")[0]) >= self.transformers


@dataclass(frozen=True)
class Architecture:
    """A row of the table in docs/architectures.md.

    Args:
        title: what people call it.
        model: the class in transformers; its configuration's class follows from it unless `config` names one.
        differs: configuration values beside _SIZES; ... leaves one of those out.
        shows: what is particular about it, for the table.
        tokenizer: writes its files.
        config: the configuration's class.
        routed: a router chooses experts, so that rounding may choose others.
        is_encoder: gives embeddings and no logits, so that llama-server runs it and not the Python runtime.
        hub: keys that the model's config.json on the Hub has, that transformers no longer writes, and that the conversion reads.
        over: the architecture of its base, where that is another one.
        fault: of the conversion.
    """

    title: str
    model: str
    shows: str
    differs: dict[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[Path], None] = _SENTENCEPIECE
    config: str = ""
    routed: bool = False
    is_encoder: bool = False
    hub: dict[str, Any] = field(default_factory=dict)
    over: str = ""
    fault: Fault | None = None

    @property
    def is_deep(self) -> bool:
        """So deep that float32's rounding already sends tokens to other experts."""
        return bool(self.differs.get("num_hidden_layers", N_LAYER) != N_LAYER)

    def configuration(self, **sizes: int) -> Any:
        import transformers

        name = self.config or self.model.replace("ForCausalLM", "Config")
        values = {key: value for key, value in {**_SIZES, **self.differs, **sizes}.items() if value is not ...}
        return getattr(transformers, name)(**values)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("Llama", "LlamaForCausalLM", "grouped queries; q and k permuted"),
    "llama-tied": Architecture(
        "Llama 3.2",
        "LlamaForCausalLM",
        "tied embeddings; RoPE factors",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": Architecture("Mistral", "MistralForCausalLM", "Llama's graph"),
    "qwen2": Architecture("Qwen2", "Qwen2ForCausalLM", "biases of q, k and v", tokenizer=_BYTE_PAIRS),
    "qwen3": Architecture("Qwen3", "Qwen3ForCausalLM", "norms of q and k", {"head_dim": 32}, _BYTE_PAIRS),
    "gemma2": Architecture(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "norms plus one; soft caps; windows by layer",
        {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "gemma3": Architecture(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "norms plus one, also of q and k; windows by layer",
        {
            "num_hidden_layers": 6,  # llama.cpp gives every sixth layer the whole context.
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 32,
            "tie_word_embeddings": True,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        },
        config="Gemma3TextConfig",
    ),
    "phi3": Architecture("Phi-3", "Phi3ForCausalLM", "fused q/k/v and gate/up"),
    "olmo2": Architecture("OLMo 2", "Olmo2ForCausalLM", "norms after the layers", tokenizer=_BYTE_PAIRS),
    "granite": Architecture(
        "Granite",
        "GraniteForCausalLM",
        "multipliers",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.2},
    ),
    "starcoder2": Architecture(
        "StarCoder2", "Starcoder2ForCausalLM", "biases everywhere", {"sliding_window": None}, _BYTE_PAIRS
    ),
    "falcon": Architecture(
        "Falcon",
        "FalconForCausalLM",
        "fused q/k/v, one key head; parallel blocks",
        {"num_kv_heads": 1, "multi_query": True, "parallel_attn": True, "tie_word_embeddings": True},
        _BYTE_PAIRS,
    ),
    "gptneox": Architecture(
        "GPT-NeoX",
        "GPTNeoXForCausalLM",
        "fused q/k/v; biases; parallel blocks",
        tokenizer=_BYTE_PAIRS,
        fault=Fault(
            "rotary_pct",
            "reads `rotary_pct`, which transformers 5 gives another name; converts with transformers 4.57",
            {"rotary_pct": 0.25},
            transformers=5,
        ),
    ),
    "gpt2": Architecture(
        "GPT-2",
        "GPT2LMHeadModel",
        "transposed matrices; position embeddings",
        {"n_embd": 128, "n_layer": N_LAYER, "n_head": 4, "n_positions": 256, "tie_word_embeddings": True}
        | dict.fromkeys(
            [
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
            ],
            ...,
        ),
        _BYTE_PAIRS,
        config="GPT2Config",
        hub={"n_ctx": 256},
    ),
    "cohere": Architecture(
        "Command R",
        "CohereForCausalLM",
        "parallel blocks; scaled logits",
        {"tie_word_embeddings": True, "logit_scale": 0.25},
        _BYTE_PAIRS,
    ),
    "stablelm": Architecture(
        "StableLM",
        "StableLmForCausalLM",
        "partial RoPE; norms with biases",
        {"use_qkv_bias": True},
        _BYTE_PAIRS,
    ),
    "stablelm-norms": Architecture(
        "StableLM 2 12B",
        "StableLmForCausalLM",
        "norms of q and k by head",
        {"qk_layernorm": True},
        _BYTE_PAIRS,
        fault=Fault("Unprocessed norms", "drops the stacked norms of q and k and stops (`return` in a generator)"),
    ),
    "glm4": Architecture(
        "GLM-4",
        "Glm4ForCausalLM",
        "fused gate/up; four norms a layer",
        {"head_dim": 32, "attention_bias": True},
        _BYTE_PAIRS,
    ),
    "smollm3": Architecture("SmolLM3", "SmolLM3ForCausalLM", "layers without RoPE", {"no_rope_layers": [1, 0]}),
    "mixtral": Architecture(
        "Mixtral",
        "MixtralForCausalLM",
        "experts",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        routed=True,
    ),
    "qwen2moe": Architecture(
        "Qwen2-MoE",
        "Qwen2MoeForCausalLM",
        "experts; a gated shared expert",
        {**_EXPERTS, "shared_expert_intermediate_size": 64},
        _BYTE_PAIRS,
        routed=True,
    ),
    "qwen3moe": Architecture(
        "Qwen3-MoE",
        "Qwen3MoeForCausalLM",
        "experts; norms of q and k",
        {**_EXPERTS, "head_dim": 32},
        _BYTE_PAIRS,
        routed=True,
    ),
    "deepseek2": Architecture(
        "DeepSeek-V2 Lite",
        "DeepseekV2ForCausalLM",
        "latent attention (3-D weights); experts, shared experts, a dense layer",
        {
            "num_hidden_layers": 27,  # llama.cpp tells the Lite models by it.
            "hidden_size": 64,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "intermediate_size": 128,
            "moe_intermediate_size": 64,
            "q_lora_rank": None,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_group": 1,
            "topk_group": 1,
        },
        _BYTE_PAIRS,
        routed=True,
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        "GptOssForCausalLM",
        "experts with biases; attention sinks; windows by layer",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        _BYTE_PAIRS,
        routed=True,
    ),
    "mamba": Architecture(
        "Mamba",
        "MambaForCausalLM",
        "recurrent",
        {"intermediate_size": ..., "tie_word_embeddings": True},
        _BYTE_PAIRS,
    ),
    "granitehybrid": Architecture(
        "Granite 4 hybrid",
        "GraniteMoeHybridForCausalLM",
        "a Mamba-2 layer and an attention layer; experts, a shared expert",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 64,
            "shared_intermediate_size": 128,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
        _BYTE_PAIRS,
        routed=True,
        fault=Fault(
            "head_count_kv",
            "takes every layer for a Mamba layer, because transformers 5 has other names for `layer_types`; converts with "
            "transformers 4.57",
            {"layer_types": ["mamba", "attention"]},
            transformers=5,
        ),
    ),
    "lfm2": Architecture(
        "LFM2",
        "Lfm2ForCausalLM",
        "a convolution layer and an attention layer",
        {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True},
        _BYTE_PAIRS,
    ),
    "qwen2vl": Architecture(
        "Qwen2-VL",
        "Qwen2VLForConditionalGeneration",
        "its language model; RoPE in three sections",
        _QWEN2VL,
        _BYTE_PAIRS,
        config="Qwen2VLConfig",
    ),
    "qwen2vl-over-qwen2": Architecture(
        "Qwen2-VL over Qwen2",
        "Qwen2VLForConditionalGeneration",
        "its language model over the text model that it was made from; text only",
        _QWEN2VL,
        _BYTE_PAIRS,
        config="Qwen2VLConfig",
        over="qwen2",
    ),
    "bert": Architecture(
        "BERT",
        "BertModel",
        "an encoder: embeddings",
        {"num_key_value_heads": ..., "pad_token_id": 0},
        tiny_tokenizers.write_words,
        config="BertConfig",
        is_encoder=True,
    ),
}


def write_base(arch: Architecture, path: Path, seed: int = 0, **sizes: int) -> Path:
    """A base with random weights as a Hugging Face directory, bf16; `sizes` differ from the architecture's."""
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, arch.model)(arch.configuration(**sizes))
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(path)
    edit_json(path / "config.json", **arch.hub)
    arch.tokenizer(path)
    return path


def share_weights(source: Path, target: Path) -> None:
    """Gives a model the weights that another one has under the same names."""
    from safetensors.torch import load_file, save_file

    shared = load_file(source / "model.safetensors")
    file = target / "model.safetensors"
    save_file({name: shared.get(name, weight) for name, weight in load_file(file).items()}, file, {"format": "pt"})


def write_tuned(
    source: Path, target: Path, seed: int, amount: float = 0.2, is_kept: Callable[[str], bool] = lambda _: False
) -> Path:
    """A fine-tune: every tensor that is not kept is changed by `amount` of its size, a part of that along four directions."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    file = target / "model.safetensors"
    changed = {}
    for name, weight in load_file(file).items():
        if is_kept(name):
            changed[name] = weight
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        change = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            *stack, n_out, n_in = weight.shape
            change += torch.randn((*stack, n_out, 4), generator=generator) @ torch.randn((4, n_in), generator=generator)
        size = amount * weight.float().std() / change.std()
        changed[name] = (weight.float() + size * change).to(weight.dtype)
    save_file(changed, file, {"format": "pt"})
    return target
