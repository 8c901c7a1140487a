"""Makes a random mixture of experts of Qwen3-30B-A3B's form, cut in depth and experts, and random deltas of it (random_models.py).

  make_qwen3_moe.py -o qwen3moe --quantize Q8_0 --deltas 8

writes base-f16.gguf, base-q8_0.gguf and delta-00.dq.gguf ...: 8 layers, 2048 wide, 64 experts of 768 of which a token
takes 8, 32 heads of 128 over 4 kv heads with q/k norms: 2.8 billion parameters, 0.6 of them active.
Deltas are made over the F16 base: over the quantised one they run with --delta-allow-other-base.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from support.random_models import RandomModel, make_all, make_parser, model_weights

PROG = "make_qwen3_moe.py"


@dataclass(frozen=True)
class Shape:
    """What the model looks like."""

    n_layer: int = 8
    n_embd: int = 2048
    n_ff: int = 768
    n_expert: int = 64
    n_expert_used: int = 8
    n_head: int = 32
    n_head_kv: int = 4
    head_dim: int = 128

    def check(self) -> None:
        """Raises InputError if no model has this shape."""
        if not 1 <= self.n_expert_used <= self.n_expert:
            raise InputError(f"--experts-used {self.n_expert_used}: must be 1 to --experts {self.n_expert}")
        if min(self.n_layer, self.n_embd, self.n_ff) < 1:
            raise InputError("--layers, --width, --ff: must be at least 1")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        """The keys of the architecture."""
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layer)
        writer.add_feed_forward_length(self.n_ff)
        writer.add_expert_feed_forward_length(self.n_ff)
        writer.add_expert_count(self.n_expert)
        writer.add_expert_used_count(self.n_expert_used)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e6)


def weight_shapes(shape: Shape, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes, ([n_expert,] n_out, n_in), of the model's weights."""
    n_embd, n_q, n_kv = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (n_embd,),
        "attn_q": (n_q, n_embd),
        "attn_k": (n_kv, n_embd),
        "attn_v": (n_kv, n_embd),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "attn_output": (n_embd, n_q),
        "ffn_norm": (n_embd,),
        "ffn_gate_inp": (shape.n_expert, n_embd),
        "ffn_gate_exps": (shape.n_expert, shape.n_ff, n_embd),
        "ffn_up_exps": (shape.n_expert, shape.n_ff, n_embd),
        "ffn_down_exps": (shape.n_expert, n_embd, shape.n_ff),
    }
    return model_weights(block, shape.n_layer, n_embd, n_vocab)


def make(args: argparse.Namespace) -> None:
    """Makes what the arguments ask for."""
    shape = Shape(
        n_layer=args.layers, n_embd=args.width, n_ff=args.ff, n_expert=args.experts, n_expert_used=args.experts_used
    )
    shape.check()
    make_all(args, RandomModel("qwen3moe", args.vocab, shape.add_metadata, weight_shapes(shape, args.vocab)))


def main() -> int:
    """Runs the command; returns its exit code."""
    shape = Shape()
    parser = make_parser(PROG, __doc__, n_layer=shape.n_layer, n_embd=shape.n_embd)
    parser.add_argument("--ff", type=int, default=shape.n_ff, help="width of an expert (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=shape.n_expert, help="(default: %(default)s)")
    parser.add_argument(
        "--experts-used", type=int, default=shape.n_expert_used, help="by a token (default: %(default)s)"
    )
    args = parser.parse_args()
    return run(lambda: make(args), PROG)


if __name__ == "__main__":
    sys.exit(main())
