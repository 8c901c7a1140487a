"""Random LoRA adapters of a random model: as GGUFs for `--lora`, and as deltas of the same factors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.model.base import GgufModel
from support.random_models import LOW_RANK_AMOUNT, generator, make

# What adapters usually change: the projections of attention and of the feed-forward part.
TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_lora(path: Path, base: GgufModel, rank: int, seed: int) -> None:
    """Writes an adapter of all targets in F16; its alpha is its rank, so that B keeps its numbers."""
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, rank)
    for name, ne in base.shapes.items():
        if not any(name.endswith(f".{target}.weight") for target in TARGETS):
            continue
        n_in, n_out = ne
        rng = generator(seed, "lora", name)
        size = (LOW_RANK_AMOUNT * n_in**-0.5 / rank**0.5) ** 0.5  # as the factors of random_models.random_delta
        for suffix, dims in (("lora_a", (rank, n_in)), ("lora_b", (n_out, rank))):
            values = rng.standard_normal(dims, np.float32) * np.float32(size)
            writer.add_tensor(f"{name}.{suffix}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_loras(folder: Path, base: Path, n: int, rank: int) -> tuple[list[Path], list[Path]]:
    """Makes lora-NN.gguf and lora-NN.dq.gguf, those that are not there yet; returns both lists."""
    model = GgufModel(base)
    loras, deltas = [], []
    for i in range(n):
        lora = folder / f"lora-{i:02d}.gguf"
        delta = folder / f"lora-{i:02d}{fmt.SUFFIX}"
        loras.append(make(lora, partial(write_lora, base=model, rank=rank, seed=i)))
        deltas.append(make(delta, partial(_convert, base, lora)))
    return loras, deltas


def _convert(base: Path, lora: Path, outfile: Path) -> None:
    convert(Job(base, lora, outfile, force=True), Options())
