"""A BERT with random weights as a GGUF: what upstream's tests of embeddings and reranking need of a model."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

from dqrelo_gguf._pin import gguf
from tests.support.gguf_files import finish

N_EMBD, N_FF, N_LAYER, N_HEAD, N_CTX = 64, 128, 2, 4, 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORD_START = "\u2581"
# Whole words, as a real vocabulary has them: the tests count their tokens. Other words are spelt.
WORDS = ("i", "believe", "the", "meaning", "of", "life", "is", "this", "a", "test", "hello", "machine", "learning")


def _vocabulary() -> list[str]:
    """A WordPiece vocabulary in llama.cpp's form: words begin with a mark, pieces inside them do not."""
    signs = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    return list(dict.fromkeys([*SPECIAL, *signs, *(WORD_START + s for s in [*signs, *WORDS])]))


def _shapes(n_vocab: int, *, is_reranker: bool) -> dict[str, tuple[int, ...]]:
    """Names and numpy shapes of the tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, N_EMBD),
        "token_types.weight": (2, N_EMBD),
        "position_embd.weight": (N_CTX, N_EMBD),
        "token_embd_norm.weight": (N_EMBD,),
        "token_embd_norm.bias": (N_EMBD,),
    }
    for il in range(N_LAYER):
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (N_EMBD, N_EMBD))
        matrices |= {"ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
        for name, dims in matrices.items():
            shapes |= {f"blk.{il}.{name}.weight": dims, f"blk.{il}.{name}.bias": dims[:1]}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{il}.{name}.weight": (N_EMBD,), f"blk.{il}.{name}.bias": (N_EMBD,)}
    if is_reranker:
        shapes |= {"cls.weight": (N_EMBD, N_EMBD), "cls.bias": (N_EMBD,)}
        shapes |= {"cls.output.weight": (1, N_EMBD), "cls.output.bias": (1,)}
    return shapes


def write_bert(path: Path, *, is_reranker: bool = False, seed: int = 0) -> Path:
    """Writes the model, F32; a reranker has a classifier with one output."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if is_reranker else gguf.PoolingType.CLS)
    tokens = _vocabulary()
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(SPECIAL) + [normal] * (len(tokens) - len(SPECIAL)))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    rng = np.random.default_rng(seed)
    for name, dims in _shapes(len(tokens), is_reranker=is_reranker).items():
        noise = rng.standard_normal(dims)
        values = noise / np.sqrt(dims[-1]) if len(dims) > 1 else 0.1 * noise + float("norm.weight" in name)
        writer.add_tensor(name, values.astype(np.float32))
    finish(writer)
    return path
