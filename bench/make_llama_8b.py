"""Makes what the time of a conversion is measured on: a random Llama of the shape of Llama-3.1-8B in Q4_K_M, and a fine-tune of it.

  make_llama_8b.py -o llama8b
  time dqrelo-convert llama8b/base-q4_k_m.gguf llama8b/ft -o ft.dq.gguf

The fine-tune is a Hugging Face directory of bf16 shards. Its delta changes every weight: vectors whose energy falls by a power of their number,
and noise as large as they are. The base is quantised from F16, so its rounding is a part of the delta, as it is for a real one.
At its height this takes 33 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from dqrelo_gguf.cli import run
from support.llama_shape import Shape, weight_shapes
from support.random_models import RandomModel, base_weight, generator, make, quantize, vocabulary, write_base

PROG = "make_llama_8b.py"
F32 = npt.NDArray[np.float32]
SHAPE = Shape(n_layer=32, n_embd=4096, n_ff=14336, n_head=32, n_head_kv=8)
N_VOCAB = 128256
# The delta against the weight, and how many vectors its low-rank part has.
AMOUNT = 0.03
RANK = 256
DECAY = 0.4
HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """The name that transformers gives a weight of a Llama."""
    parts = name.removesuffix(".weight").split(".")
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{HF_NAMES[parts[-1]]}.weight"


def tuned_weight(name: str, dims: tuple[int, ...], seed: int) -> F32:
    """The fine-tune's values in the layout of the GGUF."""
    values = base_weight(name, dims, seed).astype(np.float32)
    rng = generator(seed, "ft", name)
    if len(dims) == 1:
        return values + np.float32(0.01) * rng.standard_normal(dims, np.float32)
    n_out, n_in = dims
    size = np.float32(AMOUNT * n_in**-0.5)
    fall = np.arange(1, RANK + 1, dtype=np.float32) ** -DECAY
    fall /= np.linalg.norm(fall)
    low_rank = (rng.standard_normal((n_out, RANK), np.float32) * fall) @ rng.standard_normal((RANK, n_in), np.float32)
    values += size * low_rank
    values += size * rng.standard_normal(dims, np.float32)
    return values


def from_rope_layout(values: F32, n_head: int) -> F32:
    """The rows of q or k as transformers has them: the halves of a head one after the other, which a GGUF has in turn."""
    n_out, n_in = values.shape
    return values.reshape(n_head, n_out // n_head // 2, 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)


def hf_weights(shape: Shape, weights: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of the fine-tune, as transformers has them."""
    for name, dims in weights.items():
        values = tuned_weight(name, dims, seed)
        if "attn_q" in name or "attn_k" in name:
            values = from_rope_layout(values, shape.n_head if "attn_q" in name else shape.n_head_kv)
        yield hf_name(name), torch.from_numpy(np.ascontiguousarray(values)).bfloat16()


def write_tokenizer(folder: Path, n_vocab: int) -> None:
    """The base's vocabulary as a SentencePiece model; its kinds of pieces have the numbers of GGUF's types of tokens."""
    proto = model_pb2.ModelProto()
    proto.trainer_spec.byte_fallback = True
    for token, score, kind in zip(*vocabulary(n_vocab), strict=True):
        proto.pieces.add(piece=token.decode(), score=score, type=kind)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def write_fine_tune(
    folder: Path, shape: Shape, weights: dict[str, tuple[int, ...]], seed: int, shard_bytes: int
) -> None:
    """Writes config.json, an index and shards of at most `shard_bytes`, or one weight."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "vocab_size": weights["output.weight"][0],
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if shard:
            save_file(shard, folder / f"part-{len(shards)}.safetensors")
            shards.append(list(shard))
            shard.clear()

    for name, values in hf_weights(shape, weights, seed):
        if sum(v.nbytes for v in shard.values()) + values.nbytes > shard_bytes:
            flush()
        shard[name] = values
    flush()
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for i, file in enumerate(files):
        (folder / f"part-{i}.safetensors").rename(folder / file)
    index = {"metadata": {}, "weight_map": {n: files[i] for i, names in enumerate(shards) for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_both(args: argparse.Namespace) -> None:
    """Makes the base, quantised, and the fine-tune."""
    shape = Shape(args.layers, SHAPE.n_embd, SHAPE.n_ff, SHAPE.n_head, SHAPE.n_head_kv)
    weights = weight_shapes(shape, args.vocab)
    model = RandomModel("llama", args.vocab, shape.add_metadata, weights)
    args.outdir.mkdir(parents=True, exist_ok=True)
    plain, target, tuned = (args.outdir / name for name in ("base-f16.gguf", "base-q4_k_m.gguf", "ft"))
    if not target.exists():
        make(plain, partial(write_base, model=model, seed=args.seed))
        make(target, partial(quantize, plain, kind="Q4_K_M"))
        plain.unlink()
    if not tuned.exists():
        write_fine_tune(tuned, shape, weights, args.seed, args.shard_bytes)


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--outdir", type=Path, required=True, help="directory of the files; made if missing")
    parser.add_argument("--layers", type=int, default=SHAPE.n_layer, help="(default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=N_VOCAB, help="tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--shard-bytes", type=int, default=4 << 30, help="of a shard (default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: make_both(args), PROG)


if __name__ == "__main__":
    sys.exit(main())
