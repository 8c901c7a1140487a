"""Makes what the benchmarks of whole models run: a random Llama of about 1B parameters, and random deltas of it (random_models.py).

  make_llama_1b.py -o llama1b --quantize Q8_0 --quantize Q4_K_M --deltas 16 --merged 8

writes base-f16.gguf, base-q8_0.gguf, base-q4_k_m.gguf, delta-00.dq.gguf ... and merged-00-f16.gguf ... (base + delta).
`--tuned 0.7` writes tuned-0.7-f16.gguf, a fine-tune for dqrelo-convert to choose the forms of its delta.
Deltas are made over the F16 base: over the quantised ones they run with --delta-allow-other-base.
"""

from __future__ import annotations

import argparse
import sys

from dqrelo_gguf.cli import run
from support.llama_shape import Shape, weight_shapes
from support.random_models import RandomModel, make_all, make_parser

PROG = "make_llama_1b.py"


def make(args: argparse.Namespace) -> None:
    """Makes what the arguments ask for."""
    shape = Shape(args.layers, args.width, args.ff, args.heads, args.kv_heads or args.heads)
    shape.check()
    make_all(args, RandomModel("llama", args.vocab, shape.add_metadata, weight_shapes(shape, args.vocab)))


def main() -> int:
    """Runs the command; returns its exit code."""
    shape = Shape()
    parser = make_parser(PROG, __doc__, n_layer=shape.n_layer, n_embd=shape.n_embd)
    parser.add_argument("--ff", type=int, default=shape.n_ff, help="n_ff (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=shape.n_head, help="(default: %(default)s)")
    parser.add_argument("--kv-heads", type=int, help="(default: as many as heads)")
    args = parser.parse_args()
    return run(lambda: make(args), PROG)


if __name__ == "__main__":
    sys.exit(main())
