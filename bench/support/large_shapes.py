"""Models that do not fit a disk, as sizes: names and shapes of their tensors as transformers has them, and their kinds.

Experts have Mixtral's names, because the vocabulary of these models is made up, and SentencePiece's is the only kind that can be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any


@dataclass(frozen=True)
class LargeShape:
    """What a model looks like.

    Args:
        name: of the shape.
        n_layer: blocks.
        n_embd: width.
        n_ff: width of the MLP, or of an expert.
        n_head: heads of attention.
        n_head_kv: of keys and values.
        head_dim: width of a head.
        n_vocab: tokens.
        n_expert: experts; 0 for an MLP.
        n_expert_used: of them, for a token.
        is_tied: the output matrix is the embedding.
    """

    name: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_expert: int = 0
    n_expert_used: int = 0
    is_tied: bool = False

    def with_layers(self, n_layer: int) -> LargeShape:
        """The same, cut or grown."""
        return replace(self, n_layer=n_layer)


SHAPES = {
    shape.name: shape
    for shape in (
        LargeShape("llama-1b", 16, 2048, 8192, 32, 8, 64, 128256, is_tied=True),
        LargeShape("llama-3b", 28, 3072, 8192, 24, 8, 128, 128256, is_tied=True),
        LargeShape("llama-8b", 32, 4096, 14336, 32, 8, 128, 128256),
        LargeShape("llama-70b", 80, 8192, 28672, 64, 8, 128, 128256),
        LargeShape("moe-235b", 94, 4096, 1536, 64, 4, 128, 151936, n_expert=128, n_expert_used=8),
    )
}


@dataclass(frozen=True)
class Kind:
    """Tensors of the GGUF that cost the same.

    Args:
        names: in a block, or of tensors outside of blocks; without `.weight`.
        dims: the numpy shape of one.
        in_blocks: every block has them.
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    in_blocks: bool

    @property
    def n_elements(self) -> int:
        return prod(self.dims)

    def pattern(self, only_one: bool) -> str:
        """A regular expression of the tensors of this kind, or of one that stands for all."""
        names = self.names[:1] if only_one else self.names
        block = (r"blk\.0\." if only_one else r"blk\.\d+\.") if self.in_blocks else ""
        return rf"^{block}({'|'.join(names)})\.weight$"

    def count(self, shape: LargeShape) -> int:
        """How many a model has."""
        return len(self.names) * (shape.n_layer if self.in_blocks else 1)


def kinds(shape: LargeShape) -> list[Kind]:
    """All kinds of a model's matrices; norms are copied, and cost nothing beside them."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    experts = (shape.n_expert,) if shape.n_expert else ()
    suffix = "_exps" if experts else ""
    found = [
        Kind(("token_embd",) if shape.is_tied else ("token_embd", "output"), (shape.n_vocab, n_embd), in_blocks=False),
        Kind(("attn_q", "attn_output") if n_q == n_embd else ("attn_q",), (n_q, n_embd), in_blocks=True),
        Kind(("attn_k", "attn_v"), (n_kv, n_embd), in_blocks=True),
        Kind((f"ffn_gate{suffix}", f"ffn_up{suffix}"), (*experts, n_ff, n_embd), in_blocks=True),
        Kind((f"ffn_down{suffix}",), (*experts, n_embd, n_ff), in_blocks=True),
    ]
    if n_q != n_embd:
        found.append(Kind(("attn_output",), (n_embd, n_q), in_blocks=True))
    if experts:
        found.append(Kind(("ffn_gate_inp",), (shape.n_expert, n_embd), in_blocks=True))
    return found


def tensors(shape: LargeShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes, (n_out, n_in), of the tensors of a Hugging Face directory."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (n_embd,),
        "self_attn.q_proj": (n_q, n_embd),
        "self_attn.k_proj": (n_kv, n_embd),
        "self_attn.v_proj": (n_kv, n_embd),
        "self_attn.o_proj": (n_embd, n_q),
        "post_attention_layernorm": (n_embd,),
    }
    if shape.n_expert:
        block["block_sparse_moe.gate"] = (shape.n_expert, n_embd)
        for i in range(shape.n_expert):
            expert = f"block_sparse_moe.experts.{i}"
            block |= {f"{expert}.w1": (n_ff, n_embd), f"{expert}.w2": (n_embd, n_ff), f"{expert}.w3": (n_ff, n_embd)}
    else:
        block |= {"mlp.gate_proj": (n_ff, n_embd), "mlp.up_proj": (n_ff, n_embd), "mlp.down_proj": (n_embd, n_ff)}
    outside: dict[str, tuple[int, ...]] = {"model.embed_tokens": (shape.n_vocab, n_embd)}
    outside |= {f"model.layers.{i}.{name}": dims for i in range(shape.n_layer) for name, dims in block.items()}
    outside["model.norm"] = (n_embd,)
    if not shape.is_tied:
        outside["lm_head"] = (shape.n_vocab, n_embd)
    return {f"{name}.weight": dims for name, dims in outside.items()}


def config(shape: LargeShape) -> dict[str, Any]:
    """Its config.json."""
    made: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if shape.n_expert else "LlamaForCausalLM"],
        "model_type": "mixtral" if shape.n_expert else "llama",
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "head_dim": shape.head_dim,
        "vocab_size": shape.n_vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
    }
    if shape.n_expert:
        made |= {"num_local_experts": shape.n_expert, "num_experts_per_tok": shape.n_expert_used}
    return made
