"""A checkpoint that need not be anywhere: every byte of its files is made when it is asked for, the same ones each time.

A tensor is made in blocks of rows, each from a seed of its own; a checkpoint can keep what it has made in a folder. A fine-tune's block is the
base's, and a change as fine-tunes have it: vectors whose energy falls by a power of their number, and noise as large as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from support.large_shapes import LargeShape, config, tensors
from support.random_models import generator, vocabulary

F32 = npt.NDArray[np.float32]
ELEMENT_BYTES = 2  # of BF16
BLOCK_ELEMENTS = 1 << 20
# The delta against the weight, and how many vectors its low-rank part has.
AMOUNT = 0.03
RANK = 256
DECAY = 0.4
# safetensors pads its header to this.
_ALIGNMENT = 8


class Kept:
    """Blocks that were made once and lie in a folder, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def block(self, tensor: Tensor, i: int) -> bytes:
        """Block i of a tensor; made now, unless it is there."""
        path = self._folder / f"{tensor.name}-{tensor.is_tuned:d}-{i}"
        if path.exists():
            return path.read_bytes()
        made = tensor.made_block(i)
        unfinished = path.with_suffix(f".{threading.get_ident()}")
        unfinished.write_bytes(made)
        unfinished.replace(path)
        return made


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint.

    Args:
        name: as transformers has it.
        dims: (n_out, n_in), or (n,).
        seed: of the model.
        is_tuned: of the fine-tune, and not of the base.
        kept: where its blocks stay; None makes them each time.
    """

    name: str
    dims: tuple[int, ...]
    seed: int
    is_tuned: bool
    kept: Kept | None = None

    @property
    def n_bytes(self) -> int:
        return ELEMENT_BYTES * prod(self.dims)

    @property
    def n_blocks(self) -> int:
        return -(-prod(self.dims[:-1]) // self.block_rows)

    @property
    def block_rows(self) -> int:
        """Rows of a block; the last one has fewer."""
        return max(1, BLOCK_ELEMENTS // self.dims[-1])

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) of it, a block at a time."""
        block_bytes = ELEMENT_BYTES * self.block_rows * self.dims[-1]
        for i in range(start // block_bytes, -(-end // block_bytes)):
            at = i * block_bytes
            yield self.block(i)[max(start - at, 0) : end - at]

    def block(self, i: int) -> bytes:
        """Block i in BF16."""
        return self.made_block(i) if self.kept is None else self.kept.block(self, i)

    def made_block(self, i: int) -> bytes:
        """The same, made now."""
        n_rows = min(self.block_rows, prod(self.dims[:-1]) - i * self.block_rows)
        values = torch.from_numpy(self._values(i, n_rows, self.dims[-1])).bfloat16()
        return values.view(torch.int16).numpy().tobytes()

    def _values(self, i: int, n_rows: int, n_in: int) -> F32:
        values = generator(self.seed, "base", self.name, str(i)).standard_normal((n_rows, n_in), np.float32)
        if len(self.dims) == 1:
            values *= np.float32(0.1)
            values += 1
        else:
            values *= np.float32(n_in**-0.5)
        if not self.is_tuned:
            return values
        rng = generator(self.seed, "tuned", self.name, str(i))
        size = np.float32(0.01 if len(self.dims) == 1 else AMOUNT * n_in**-0.5)
        noise = rng.standard_normal((n_rows, n_in), np.float32)
        if len(self.dims) > 1:
            noise += (rng.standard_normal((n_rows, RANK), np.float32) * _fall()) @ _rows(self.seed, self.name, n_in)
        return values + size * noise


def _fall() -> F32:
    fall: F32 = np.arange(1, RANK + 1, dtype=np.float32) ** np.float32(-DECAY)
    fall /= np.linalg.norm(fall)
    return fall


@lru_cache(maxsize=4)
def _rows(seed: int, name: str, n_in: int) -> F32:
    """What the blocks of a fine-tune's tensor have in common: (RANK, n_in)."""
    return generator(seed, "rows", name).standard_normal((RANK, n_in), np.float32)


class Shard:
    """A file of safetensors.

    Args:
        own: its tensors, in order.
    """

    def __init__(self, own: list[Tensor]) -> None:
        ends = list(itertools.accumulate((tensor.n_bytes for tensor in own), initial=0))
        entries = {
            tensor.name: {"dtype": "BF16", "shape": list(tensor.dims), "data_offsets": [begin, end]}
            for tensor, begin, end in zip(own, ends, ends[1:], strict=False)
        }
        text = json.dumps(entries).encode()
        text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
        self._head = len(text).to_bytes(8, "little") + text
        self.own, self._begins = own, [len(self._head) + begin for begin in ends[:-1]]
        self.n_bytes = len(self._head) + ends[-1]
        self.names = list(entries)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) of it."""
        if start < len(self._head):
            yield self._head[start:end]
        for i in range(max(bisect_right(self._begins, start) - 1, 0), len(self.own)):
            begin, tensor = self._begins[i], self.own[i]
            if begin >= end:
                return
            yield from tensor.read(max(start - begin, 0), min(end - begin, tensor.n_bytes))


class Checkpoint:
    """A model directory.

    Args:
        shape: of the model.
        seed: of its values.
        is_tuned: the fine-tune of the base that has the same shape and seed.
        shard_bytes: of a shard at most, or one tensor.
        keep: a folder of this checkpoint's own, in which what is made stays; None makes it each time.
    """

    def __init__(
        self,
        shape: LargeShape,
        seed: int,
        is_tuned: bool,
        shard_bytes: int = 5_000_000_000,
        keep: Path | None = None,
    ) -> None:
        kept = None if keep is None else Kept(keep)
        shards: list[list[Tensor]] = [[]]
        for name, dims in tensors(shape).items():
            tensor = Tensor(name, dims, seed, is_tuned, kept)
            if shards[-1] and sum(t.n_bytes for t in shards[-1]) + tensor.n_bytes > shard_bytes:
                shards.append([])
            shards[-1].append(tensor)
        n = len(shards)
        self.shards = {f"model-{i:05d}-of-{n:05d}.safetensors": Shard(own) for i, own in enumerate(shards, 1)}
        weight_map = {name: file for file, shard in self.shards.items() for name in shard.names}
        index = {"metadata": {}, "weight_map": weight_map}
        self.small = {
            "config.json": json.dumps(config(shape)).encode(),
            "tokenizer.model": _tokenizer(shape.n_vocab),
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
        self.version = hashlib.sha256(f"{shape} {seed} {is_tuned} {shard_bytes}".encode()).hexdigest()[:16]

    @property
    def n_bytes(self) -> int:
        """Of all its weights."""
        return sum(shard.n_bytes for shard in self.shards.values())

    def make_all(self, n_threads: int) -> None:
        """Makes all blocks, which then lie where they are kept."""
        blocks = [(tensor, i) for shard in self.shards.values() for tensor in shard.own for i in range(tensor.n_blocks)]
        with ThreadPoolExecutor(n_threads) as pool:
            for _ in pool.map(lambda block: len(block[0].block(block[1])), blocks):
                pass

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        if name in self.small:
            return len(self.small[name])
        return self.shards[name].n_bytes if name in self.shards else None

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) of a file that it has."""
        if name in self.small:
            yield self.small[name][start:end]
        else:
            yield from self.shards[name].read(start, end)


def _tokenizer(n_vocab: int) -> bytes:
    """A SentencePiece model of made-up pieces; its kinds of pieces have the numbers of GGUF's types of tokens."""
    proto = model_pb2.ModelProto()
    proto.trainer_spec.byte_fallback = True
    for token, score, kind in zip(*vocabulary(n_vocab), strict=True):
        proto.pieces.add(piece=token.decode(), score=score, type=kind)
    return bytes(proto.SerializeToString())
