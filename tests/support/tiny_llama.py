"""Llama models with random weights, made on the spot: bases, fine-tunes of them, and the dequantised form of a base."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.runtime.programs import program
from tests.support.delta_files import meta, write_delta
from tests.support.gguf_files import finish

Type: TypeAlias = gguf.GGMLQuantizationType
Floats: TypeAlias = npt.NDArray[np.float32]

N_BYTES = 256
BOS, EOS = 1, 2
WORDS = ("the", "dog", "cat", "sees", "a", "two", "and", "three", "makes", "five")


@dataclass(frozen=True)
class Shape:
    """What a model looks like; `n_embd` is the length of most rows, and with experts `n_ff` the width of each."""

    n_embd: int = 256
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 512
    is_tied: bool = False
    n_expert: int = 0
    n_expert_used: int = 2


NARROW = Shape(n_embd=64, n_head=2, n_head_kv=1, n_ff=96)


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary: every byte, letters, digits and a few words."""
    normal, unknown, control, byte = (
        int(t) for t in (gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.BYTE)
    )
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{b:02X}>".encode() for b in range(N_BYTES))]
    types = [unknown, control, control, *[byte] * N_BYTES]
    pieces = [
        "\u2581",
        *(chr(c) for c in range(ord("a"), ord("z") + 1)),
        *(str(d) for d in range(10)),
        ".",
        "?",
        "+",
        "=",
    ]
    pieces += [w[:n] for w in ("\u2581" + w for w in WORDS) for n in range(2, len(w) + 1)]
    unique = list(dict.fromkeys(pieces))
    tokens += [p.encode() for p in unique]
    types += [normal] * len(unique)
    scores = [0.0] * (3 + N_BYTES) + [float(len(p)) for p in unique]  # The longest piece wins.
    return tokens, scores, types


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes of a Llama model's tensors."""
    n_vocab = len(vocabulary()[0])
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, shape.n_embd),
        "output_norm.weight": (shape.n_embd,),
    }
    if not shape.is_tied:
        shapes["output.weight"] = (n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (shape.n_embd,),
            "attn_q": (shape.n_embd, shape.n_embd),
            "attn_k": (n_kv, shape.n_embd),
            "attn_v": (n_kv, shape.n_embd),
            "attn_output": (shape.n_embd, shape.n_embd),
            "ffn_norm": (shape.n_embd,),
        }
        up, down = (shape.n_ff, shape.n_embd), (shape.n_embd, shape.n_ff)
        if shape.n_expert:
            stack = (shape.n_expert,)
            block |= {"ffn_gate_inp": (shape.n_expert, shape.n_embd)}
            block |= {"ffn_gate_exps": stack + up, "ffn_up_exps": stack + up, "ffn_down_exps": stack + down}
        else:
            block |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
        shapes |= {f"blk.{il}.{name}.weight": dims for name, dims in block.items()}
    return shapes


def base_weights(shape: Shape, seed: int = 0) -> dict[str, Floats]:
    """Random weights under which activations keep their size from layer to layer."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, dims in weight_shapes(shape).items():
        noise = rng.standard_normal(dims)
        weights[name] = (1 + 0.1 * noise if len(dims) == 1 else noise / np.sqrt(dims[-1])).astype(np.float32)
    return weights


def tuned_weights(base: dict[str, Floats], seed: int, amount: float = 0.2) -> dict[str, Floats]:
    """A fine-tune: every weight changed by `amount` of its size, half of it along four directions."""
    rng = np.random.default_rng([77, seed])
    tuned = {}
    for name, weight in base.items():
        change = rng.standard_normal(weight.shape)
        if weight.ndim == 2:
            n_out, n_in = weight.shape
            change += rng.standard_normal((n_out, 4)) @ rng.standard_normal((4, n_in)) / 2
        size = float(np.std(weight) / np.std(change))
        tuned[name] = (weight + amount * size * change).astype(np.float32)
    return tuned


def write_model(
    path: Path,
    shape: Shape,
    weights: dict[str, Floats],
    out_type: Type = Type.F32,
    name: str = "tiny",
    *,
    eos: int = EOS,
    add_bos: bool = True,
) -> Path:
    """Writes a Llama GGUF; matrices in `out_type`, vectors in F32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    tokens, scores, types = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(add_bos)
    for tensor, weight in weights.items():
        kind = out_type if weight.ndim > 1 else Type.F32
        writer.add_tensor(tensor, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    finish(writer)
    return path


def quantize(source: Path, target: Path, kind: str) -> Path:
    """Runs llama-quantize."""
    command = [str(program("llama-quantize")), "--allow-requantize", str(source), str(target), kind, "2"]
    subprocess.run(command, check=True, capture_output=True)
    return target


def read_weights(path: Path) -> dict[str, Floats]:
    """The dequantised weights of a GGUF, in their numpy shapes."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in tensors}


def dequantised(source: Path, target: Path, shape: Shape) -> Path:
    """The same model with its weights in F32: what the runtime's arithmetic stands for, without its rounding."""
    return write_model(target, shape, read_weights(source))


def write_random_delta(path: Path, base: Path, shape: Shape, rank: int) -> Path:
    """Writes a delta of random values that changes every weight of a base."""
    specs = [
        WeightSpec(name, dims[::-1], rank=rank) if len(dims) == 2 else WeightSpec.dense(name, dims)
        for name, dims in weight_shapes(shape).items()
    ]
    write_delta(path, specs, meta(base_identity(base), name=path.name))
    return path
