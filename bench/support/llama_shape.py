"""Shapes of a Llama that random models have: sizes, metadata, and the names and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import InputError
from support.random_models import model_weights


@dataclass(frozen=True)
class Shape:
    """What the model looks like."""

    n_layer: int = 16
    n_embd: int = 2048
    n_ff: int = 8192
    n_head: int = 32
    n_head_kv: int = 32

    def check(self) -> None:
        """Raises InputError if no model has this shape."""
        if min(self.n_layer, self.n_embd, self.n_ff, self.n_head, self.n_head_kv) < 1:
            raise InputError("--layers, --width, --ff, --heads, --kv-heads: must be at least 1")
        if self.n_embd % (2 * self.n_head) or self.n_head % self.n_head_kv:
            raise InputError(
                f"--width {self.n_embd}, --heads {self.n_head}, --kv-heads {self.n_head_kv}: a head's width must be a "
                "whole even number, and the heads a multiple of the kv heads"
            )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        """The keys of the architecture."""
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layer)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(self.n_embd // self.n_head)


def weight_shapes(shape: Shape, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes, (n_out, n_in), of the model's weights."""
    n_embd, n_ff, n_kv = shape.n_embd, shape.n_ff, shape.n_embd // shape.n_head * shape.n_head_kv
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd, n_embd),
        "attn_k": (n_kv, n_embd),
        "attn_v": (n_kv, n_embd),
        "attn_output": (n_embd, n_embd),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }
    return model_weights(block, shape.n_layer, n_embd, n_vocab)
