"""Random models, deltas and fine-tunes of them, for the benchmarks of whole models: what make_llama_1b.py and make_qwen3_moe.py share.

The base's weights keep activations and logits finite; its vocabulary of bytes and made-up pieces tokenizes any text.
The deltas have the tensors, types and ranks that dqrelo-convert gives a full fine-tune at the ratio, with random
contents in place of an SVD. A fine-tune is there for a method to choose the forms of its delta itself.
What exists already is kept, so a second run with larger numbers adds what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import string
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.budget import parse_ratio
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.metadata import delta_meta
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.planners import plan_stages
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.runtime.programs import program

BOS, EOS = 1, 2
N_BYTES = 256
# Size of the delta's two parts against a weight of the base: about what a fine-tune's are.
SIGN_AMOUNT = 0.05
LOW_RANK_AMOUNT = 0.05
# Size of a fine-tune's change against a weight of the base, and how much of its energy is noise where its singular values fall.
TUNED_AMOUNT = 0.05
TUNED_NOISE = 1 / 12

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RandomModel:
    """What the base looks like.

    Args:
        arch: general.architecture.
        n_vocab: tokens.
        add_metadata: writes the architecture's own keys.
        weights: names and numpy shapes, (..., n_out, n_in).
    """

    arch: str
    n_vocab: int
    add_metadata: Callable[[gguf.GGUFWriter], None]
    weights: dict[str, tuple[int, ...]]


# --- base ---


def model_weights(
    block: dict[str, tuple[int, ...]], n_layer: int, n_embd: int, n_vocab: int
) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes of a model's weights, from those of one layer."""
    return {
        "token_embd.weight": (n_vocab, n_embd),
        **{f"blk.{il}.{name}.weight": dims for il in range(n_layer) for name, dims in block.items()},
        "output_norm.weight": (n_embd,),
        "output.weight": (n_vocab, n_embd),
    }


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


def generator(seed: int, *key: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone."""
    return np.random.default_rng([seed, *(zlib.crc32(k.encode()) for k in key)])


def base_weight(name: str, dims: tuple[int, ...], seed: int) -> npt.NDArray[Any]:
    """Matrices F16 under which activations keep their size from layer to layer, norms F32 around 1."""
    values = generator(seed, "base", name).standard_normal(dims, np.float32)
    if len(dims) == 1:
        return 1 + np.float32(0.1) * values
    values *= np.float32(dims[-1] ** -0.5)
    return values.astype(np.float16)


def tuned_weight(name: str, dims: tuple[int, ...], seed: int, exponent: float) -> npt.NDArray[Any]:
    """The base's weight, and for a matrix a change of full rank whose singular values fall about as i^-exponent.

    An exponent of 0 is the flattest spectrum, that of a Gaussian matrix.
    """
    weight = base_weight(name, dims, seed)
    if len(dims) == 1:
        return weight
    rng = generator(seed, "tuned", name)
    change = rng.standard_normal(dims, np.float32)
    if exponent > 0:
        *_, n_out, n_in = dims
        rank = min(n_out, n_in)
        left = rng.standard_normal((*dims[:-1], rank), np.float32)
        left *= np.arange(1, rank + 1, dtype=np.float32) ** np.float32(-exponent)
        falling = left @ rng.standard_normal((*dims[:-2], rank, n_in), np.float32)
        falling *= np.float32(((1 - TUNED_NOISE) / TUNED_NOISE) ** 0.5) / falling.std()
        change += falling
    change *= np.float32(TUNED_AMOUNT * dims[-1] ** -0.5) / change.std()
    return (weight + change).astype(np.float16)


def write_model(path: Path, model: RandomModel, weight: Callable[[str, tuple[int, ...]], npt.NDArray[Any]]) -> None:
    """Writes the model, one weight at a time; `weight` makes it from a name and a numpy shape."""
    if model.n_vocab < len(vocabulary(0)[0]):
        raise InputError(f"--vocab {model.n_vocab}: must be at least {len(vocabulary(0)[0])}, bytes and letters")
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_name(f"random {model.arch}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(8192)
    model.add_metadata(writer)
    tokens, scores, types = vocabulary(model.n_vocab)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    for name, dims in model.weights.items():
        kind = np.dtype(np.float32 if len(dims) == 1 else np.float16)
        writer.add_tensor_info(name, dims, kind, int(np.prod(dims)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims in model.weights.items():
        writer.write_tensor_data(weight(name, dims))
    writer.close()


def write_base(path: Path, model: RandomModel, seed: int) -> None:
    """Writes the model with the weights that the seed decides."""
    write_model(path, model, partial(base_weight, seed=seed))


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
    """A random delta of one weight, or of a stack of them, with the arrays that its spec asks for."""
    dims = tuple(reversed(spec.ne))
    if spec.dense_type is not None:
        return WeightData(dense=_normal(rng, dims, SIGN_AMOUNT * 0.1))
    *stack, n_out, n_in = dims
    size = n_in**-0.5  # The weights of a base have this size.
    bits = np.frombuffer(rng.bytes(spec.n_elements // 8), np.uint8).reshape(*stack, n_out, n_in // 8)
    plane = bits, np.full((*stack, 1), SIGN_AMOUNT * size, np.float32)
    if spec.rank == 0:
        return WeightData(planes=[plane])
    # An element of U V is a sum of `rank` products.
    factor = (LOW_RANK_AMOUNT * size / spec.rank**0.5) ** 0.5
    u, v = _normal(rng, (*stack, n_out, spec.rank), factor), _normal(rng, (*stack, spec.rank, n_in), factor)
    return WeightData(planes=[plane], u=u, v=v)


def _normal(rng: np.random.Generator, dims: tuple[int, ...], size: float) -> F32:
    values: F32 = rng.standard_normal(dims, np.float32)
    values *= np.float32(size)
    return values


def write_delta(path: Path, name: str, base: GgufModel, options: Options, seed: int) -> None:
    """Writes a random delta of every weight of the base; `name` decides its contents."""
    specs = [p.spec for p in plan_stages([Pair(n, ne, n) for n, ne in base.shapes.items()], options)]
    meta = replace(
        delta_meta(base, base, options, name=name, reference=None, note=print), method="random", converter="bench"
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


def make_all(args: argparse.Namespace, model: RandomModel) -> None:
    """Makes what the arguments of make_parser ask for."""
    options = Options(ratio=parse_ratio(args.ratio), method="paper")
    args.outdir.mkdir(parents=True, exist_ok=True)
    path = make(args.outdir / "base-f16.gguf", partial(write_base, model=model, seed=args.seed))
    for kind in args.quantize:
        make(args.outdir / f"base-{kind.lower()}.gguf", partial(quantize, path, kind=kind))
    for exponent in args.tuned:
        weight = partial(tuned_weight, seed=args.seed, exponent=exponent)
        make(args.outdir / f"tuned-{exponent:g}-f16.gguf", partial(write_model, model=model, weight=weight))
    base = GgufModel(path)
    names = [f"delta-{i:02d}" for i in range(max(args.deltas, args.merged))]
    deltas = [
        make(args.outdir / f"{n}{fmt.SUFFIX}", partial(write_delta, name=n, base=base, options=options, seed=args.seed))
        for n in names
    ]
    merging = MergeOptions("f16", verify=False, force=True)
    for i, delta in enumerate(deltas[: args.merged]):
        make(args.outdir / f"merged-{i:02d}-f16.gguf", partial(merge, path, delta, options=merging))


def make_parser(program: str, text: str, *, n_layer: int, n_embd: int) -> argparse.ArgumentParser:
    """The options of a program that makes models: what to make, and the sizes that every shape has, with defaults."""
    parser = argparse.ArgumentParser(
        prog=program, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--outdir", type=Path, required=True, help="directory of the files; made if missing")
    parser.add_argument("--vocab", type=int, default=32000, help="tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--quantize", action="append", default=[], metavar="TYPE", help="also the base in this type; repeatable"
    )
    parser.add_argument(
        "--tuned",
        action="append",
        type=float,
        default=[],
        metavar="EXPONENT",
        help="also a fine-tune, to be converted, whose change has singular values that fall as i^-EXPONENT; repeatable",
    )
    parser.add_argument("--deltas", type=int, default=0, metavar="N", help="random deltas (default: %(default)s)")
    parser.add_argument("--ratio", default="1/8", help="of the deltas (default: %(default)s)")
    parser.add_argument(
        "--merged", type=int, default=0, metavar="N", help="base + delta as plain F16 GGUFs (default: %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=n_layer, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=n_embd, help="n_embd (default: %(default)s)")
    return parser
