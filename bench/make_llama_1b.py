"""Makes what the benchmarks of whole models run: a random Llama of about 1B parameters, and random deltas of it.

The base's weights keep activations and logits finite; its vocabulary of bytes and made-up pieces tokenizes any text.
The deltas have the tensors, types and ranks that dqrelo-convert gives a full fine-tune at the ratio, with random
contents in place of an SVD. What exists already is kept, so a second run with larger numbers adds what is missing.

  make_llama_1b.py -o llama1b --quantize Q8_0 --quantize Q4_K_M --deltas 16 --merged 8

writes base-f16.gguf, base-q8_0.gguf, base-q4_k_m.gguf, delta-00.dq.gguf ... and merged-00-f16.gguf ... (base + delta).
Deltas are made over the F16 base: over the quantised ones they run with --delta-allow-other-base.
"""

from __future__ import annotations

import argparse
import itertools
import string
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf import format as fmt
from dqrelo_gguf._pin import gguf
from dqrelo_gguf.base import GgufModel
from dqrelo_gguf.cli import run
from dqrelo_gguf.cli.server import program
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.merge import MergeOptions, merge
from dqrelo_gguf.metadata import delta_meta
from dqrelo_gguf.pairing import Pair
from dqrelo_gguf.plan import Options, plan
from dqrelo_gguf.ratio import parse_ratio
from dqrelo_gguf.writer import DeltaWriter, WeightData, WeightSpec

PROG = "make_llama_1b.py"
BOS, EOS = 1, 2
N_BYTES = 256
# Size of the delta's two parts against a weight of the base: about what a fine-tune's are.
SIGN_AMOUNT = 0.05
LOW_RANK_AMOUNT = 0.05

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """What the model looks like."""

    n_layer: int = 16
    n_embd: int = 2048
    n_ff: int = 8192
    n_head: int = 32
    n_head_kv: int = 32
    n_vocab: int = 32000

    def check(self) -> None:
        """Raises InputError if no model has this shape."""
        if min(self.n_layer, self.n_embd, self.n_ff, self.n_head, self.n_head_kv) < 1:
            raise InputError("--layers, --width, --ff, --heads, --kv-heads: must be at least 1")
        if self.n_embd % (2 * self.n_head) or self.n_head % self.n_head_kv:
            raise InputError(
                f"--width {self.n_embd}, --heads {self.n_head}, --kv-heads {self.n_head_kv}: a head's width must be a "
                "whole even number, and the heads a multiple of the kv heads"
            )
        if self.n_vocab < len(vocabulary(0)[0]):
            raise InputError(f"--vocab {self.n_vocab}: must be at least {len(vocabulary(0)[0])}, bytes and letters")


# --- base ---


def vocabulary(n_vocab: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary: every byte, printable characters, strings of letters.

    Each string's prefixes are in it too, so that the tokenizer can build it up; the longest piece wins.
    """
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{b:02X}>".encode() for b in range(N_BYTES))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * N_BYTES]
    pieces = ["\u2581", *string.digits, *string.ascii_letters, *string.punctuation]
    strings = ("".join(s) for n in itertools.count(2) for s in itertools.product(string.ascii_lowercase, repeat=n))
    pieces += itertools.islice(strings, max(0, n_vocab - len(tokens) - len(pieces)))
    scores = [0.0] * len(tokens) + [float(len(p)) for p in pieces]
    types += [kinds.NORMAL] * len(pieces)
    return tokens + [p.encode() for p in pieces], scores, [int(t) for t in types]


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
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
    return {
        "token_embd.weight": (shape.n_vocab, n_embd),
        **{f"blk.{il}.{name}.weight": dims for il in range(shape.n_layer) for name, dims in block.items()},
        "output_norm.weight": (n_embd,),
        "output.weight": (shape.n_vocab, n_embd),
    }


def generator(seed: int, *key: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone."""
    return np.random.default_rng([seed, *(zlib.crc32(k.encode()) for k in key)])


def base_weight(name: str, dims: tuple[int, ...], seed: int) -> npt.NDArray[Any]:
    """Matrices F16 under which activations keep their size from layer to layer, norms F32 around 1."""
    values = generator(seed, "base", name).standard_normal(dims, np.float32)
    if len(dims) == 1:
        return 1 + np.float32(0.1) * values
    values *= np.float32(dims[1] ** -0.5)
    return values.astype(np.float16)


def write_base(path: Path, shape: Shape, seed: int) -> None:
    """Writes the model, one weight at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random llama, seed {seed}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    tokens, scores, types = vocabulary(shape.n_vocab)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    shapes = weight_shapes(shape)
    for name, dims in shapes.items():
        kind = np.dtype(np.float32 if len(dims) == 1 else np.float16)
        writer.add_tensor_info(name, dims, kind, int(np.prod(dims)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims in shapes.items():
        writer.write_tensor_data(base_weight(name, dims, seed))
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Runs llama-quantize.

    Raises:
        InputError: it failed.
    """
    done = subprocess.run(
        [program("llama-quantize"), source, target, kind], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InputError(f"llama-quantize {kind}: {done.stderr[-500:]}")


# --- deltas ---


def random_delta(spec: WeightSpec, rng: np.random.Generator) -> WeightData:
    """A random delta of one weight with the arrays that its spec asks for."""
    if spec.dense_type is not None:
        return WeightData(dense=_normal(rng, tuple(reversed(spec.ne)), SIGN_AMOUNT * 0.1))
    n_in, n_out = spec.ne
    size = n_in**-0.5  # of a weight of the base
    bits = np.frombuffer(rng.bytes(n_out * n_in // 8), np.uint8).reshape(n_out, n_in // 8)
    plane = bits, np.array([SIGN_AMOUNT * size], np.float32)
    if spec.rank == 0:
        return WeightData(planes=[plane])
    # an element of U V is a sum of `rank` products
    factor = (LOW_RANK_AMOUNT * size / spec.rank**0.5) ** 0.5
    u, v = _normal(rng, (n_out, spec.rank), factor), _normal(rng, (spec.rank, n_in), factor)
    return WeightData(planes=[plane], u=u, v=v)


def _normal(rng: np.random.Generator, dims: tuple[int, ...], size: float) -> F32:
    values: F32 = rng.standard_normal(dims, np.float32)
    values *= np.float32(size)
    return values


def write_delta(path: Path, name: str, base: GgufModel, options: Options, seed: int) -> None:
    """Writes a random delta of every weight of the base; `name` decides its contents."""
    specs = [p.spec for p in plan([Pair(n, ne, n) for n, ne in base.shapes.items()], options)]
    meta = replace(
        delta_meta(base, base, options, name=name, reference=None), method="random", converter=f"bench/{PROG}"
    )
    with DeltaWriter(path, meta, specs, force=True) as writer:
        for spec in specs:
            writer.write(random_delta(spec, generator(seed, name, spec.name)))


# --- command ---


def make(target: Path, write: Callable[[Path], object]) -> Path:
    """Has `write` make a file under a temporary name, if it is not there yet."""
    if target.exists():
        print(f"{target}: exists, kept")
        return target
    begun = time.monotonic()
    unfinished = target.with_name(f".{target.name}.partial")
    try:
        write(unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{target}: {target.stat().st_size:,} bytes, {time.monotonic() - begun:.1f} s", flush=True)
    return target


def make_all(args: argparse.Namespace) -> None:
    """Makes what the arguments ask for."""
    shape = Shape(args.layers, args.width, args.ff, args.heads, args.kv_heads or args.heads, args.vocab)
    shape.check()
    options = Options(ratio=parse_ratio(args.ratio))
    args.outdir.mkdir(parents=True, exist_ok=True)
    path = make(args.outdir / "base-f16.gguf", partial(write_base, shape=shape, seed=args.seed))
    for kind in args.quantize:
        make(args.outdir / f"base-{kind.lower()}.gguf", partial(quantize, path, kind=kind))
    base = GgufModel(path)
    names = [f"delta-{i:02d}" for i in range(max(args.deltas, args.merged))]
    deltas = [
        make(args.outdir / f"{n}{fmt.SUFFIX}", partial(write_delta, name=n, base=base, options=options, seed=args.seed))
        for n in names
    ]
    merging = MergeOptions("f16", verify=False, force=True)
    for i, delta in enumerate(deltas[: args.merged]):
        make(args.outdir / f"merged-{i:02d}-f16.gguf", partial(merge, path, delta, options=merging))


def main() -> int:
    """Runs the command; returns its exit code."""
    shape = Shape()
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--outdir", type=Path, required=True, help="directory of the files; made if missing")
    parser.add_argument("--layers", type=int, default=shape.n_layer, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=shape.n_embd, help="n_embd (default: %(default)s)")
    parser.add_argument("--ff", type=int, default=shape.n_ff, help="n_ff (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=shape.n_head, help="(default: %(default)s)")
    parser.add_argument("--kv-heads", type=int, help="(default: as many as heads)")
    parser.add_argument("--vocab", type=int, default=shape.n_vocab, help="tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--quantize", action="append", default=[], metavar="TYPE", help="also the base in this type; repeatable"
    )
    parser.add_argument("--deltas", type=int, default=0, metavar="N", help="random deltas (default: %(default)s)")
    parser.add_argument("--ratio", default="1/8", help="of the deltas (default: %(default)s)")
    parser.add_argument(
        "--merged", type=int, default=0, metavar="N", help="base + delta as plain F16 GGUFs (default: %(default)s)"
    )
    args = parser.parse_args()
    return run(lambda: make_all(args), PROG)


if __name__ == "__main__":
    sys.exit(main())
