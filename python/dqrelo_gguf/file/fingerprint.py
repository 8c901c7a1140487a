"""Base identity: is this the base that a delta was made for? (docs/format.md, section 6)

Computed from the base file, all shards, in milliseconds: names, shapes, types and a few sampled bytes of each tensor,
and a few hundred dequantised values that survive another quantisation.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, TensorInfo
from dqrelo_gguf.file.layout import Type, ne_text, padded_ne, type_name

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<n>\d{5})\.gguf")

_PLAIN_DTYPES = {
    Type.F64: "<f8",
    Type.I8: "<i1",
    Type.I16: "<i2",
    Type.I32: "<i4",
    Type.I64: "<i8",
}


class Match(Enum):
    """What a comparison of a delta with a base says."""

    SAME_FILE = "same file"
    SAME_MODEL = "same model, other bytes"
    OTHER_MODEL = "another model"


@dataclass(frozen=True)
class BaseIdentity:
    """What identifies a base.

    Args:
        digest: exact part, 64 hex digits.
        sample_tensors: names of the sampled tensors.
        samples: f32 (32 * len(sample_tensors),), 32 values a tensor.
    """

    digest: str
    sample_tensors: tuple[str, ...]
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """A match and the correlation of the samples behind it (1 for the same file)."""

    match: Match
    correlation: float


def shards(path: str | os.PathLike[str]) -> list[Path]:
    """All files of a model, in order: the given one, or every shard of `name-00001-of-0000N.gguf`.

    Raises:
        InputError: a file is missing; the first missing one is named.
    """
    path = Path(path)
    name = _SHARD_NAME.fullmatch(path.name)
    paths = [path]
    if name is not None and int(name["n"]) > 0:
        n = int(name["n"])
        paths = [path.with_name(f"{name['stem']}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]
    for p in paths:
        if not p.is_file():
            missing = f" ({len(paths)} shards belong to this model)" if len(paths) > 1 else ""
            raise InputError(f"{p}: no such file{missing}")
    return paths


class ModelFile:
    """A model's GGUF, all shards as if they were one file.

    Args:
        path: the file, or any of its shards.

    Raises:
        InputError: a shard is missing, or it is an adapter.
        FormatError: a file is malformed, or the shards do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files = [GGUFFile(p) for p in shards(path)]
        self._homes: dict[str, GGUFFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for number, file in enumerate(self.files):
            self._check_shard(file, number)
            for name, info in file.tensors.items():
                if name in self.tensors:
                    file.fail(f"tensor '{name}' is in {self._homes[name].path.name} too")
                self.tensors[name] = info
                self._homes[name] = file
        n_declared = self.files[0].value("split.tensors.count", len(self.tensors))
        if n_declared != len(self.tensors):
            self.files[0].fail(f"its shards have {len(self.tensors)} tensors, expected {n_declared}")
        if self.value(fmt.KEY_GENERAL_TYPE) == fmt.GENERAL_TYPE:
            raise InputError(f"{self.path}: is an adapter, expected a model")
        if not self.architecture:
            raise InputError(f"{self.path}: has no {fmt.KEY_ARCHITECTURE}, expected a model")

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value; the first shard has them all."""
        return self.files[0].value(key, default)

    @property
    def architecture(self) -> str:
        return str(self.value(fmt.KEY_ARCHITECTURE, ""))

    @property
    def name(self) -> str:
        """Its general.name, or its file name without extension."""
        return str(self.value(fmt.KEY_NAME) or self.path.stem)

    def raw(self, name: str, start: int = 0, n_bytes: int | None = None) -> npt.NDArray[np.uint8]:
        """Bytes of a tensor's data, a view of the mapped file."""
        return self._homes[name].raw(self.tensors[name], start, n_bytes)

    def elements(self, name: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Dequantised values of a tensor at flat indices, reading only the blocks that hold them."""
        info = self.tensors[name]
        if info.type in _PLAIN_DTYPES:
            return self.raw(name).view(_PLAIN_DTYPES[info.type])[indices].astype(np.float32)
        block, block_bytes = gguf.GGML_QUANT_SIZES[info.type]
        blocks = self.raw(name).reshape(-1, block_bytes)[indices // block]
        try:
            values: npt.NDArray[np.float32] = gguf.quants.dequantize(blocks, info.type)
        except NotImplementedError:
            raise InputError(
                f"{self.path.name}: tensor '{name}' has type {type_name(info.type)}, which gguf cannot dequantise"
            ) from None
        picked: npt.NDArray[np.float32] = values.reshape(len(indices), block)[np.arange(len(indices)), indices % block]
        return picked

    def _check_shard(self, file: GGUFFile, number: int) -> None:
        n, no = file.value("split.count", 1), file.value("split.no", 0)
        if (n, no) != (len(self.files), number) and (n > 1 or len(self.files) > 1):
            file.fail(f"is shard {no + 1} of {n}, expected {number + 1} of {len(self.files)}. Was it renamed?")


def base_identity(base: ModelFile | str | os.PathLike[str]) -> BaseIdentity:
    """The identity of a base, from its file or any of its shards."""
    model = base if isinstance(base, ModelFile) else ModelFile(base)
    names = sample_names(model)
    return BaseIdentity(_digest(model), tuple(names), samples_for(model, names))


def sample_names(model: ModelFile) -> list[str]:
    """The tensors that are sampled: at most 16, spread evenly over the sorted names of those with two dimensions."""
    names = _sorted(name for name, info in model.tensors.items() if sum(n > 1 for n in info.ne) >= 2)
    n = min(len(names), fmt.SAMPLE_TENSORS)
    return [names[q * len(names) // n] for q in range(n)]


def samples_for(model: ModelFile, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """32 dequantised values of each named tensor, at flat indices (2 t + 1) n / 64."""
    t = np.arange(fmt.SAMPLES_PER_TENSOR, dtype=np.int64)
    groups = [
        model.elements(name, (2 * t + 1) * model.tensors[name].n_elements // (2 * fmt.SAMPLES_PER_TENSOR))
        for name in names
    ]
    return np.concatenate(groups) if groups else np.empty(0, np.float32)


def compare(delta: BaseIdentity, base: ModelFile | str | os.PathLike[str]) -> Comparison:
    """Compares the identity that a delta carries with a base."""
    model = base if isinstance(base, ModelFile) else ModelFile(base)
    if _digest(model) == delta.digest:
        return Comparison(Match.SAME_FILE, 1.0)
    if any(name not in model.tensors for name in delta.sample_tensors):
        return Comparison(Match.OTHER_MODEL, 0.0)
    r = correlation(delta.samples, samples_for(model, delta.sample_tensors))
    return Comparison(Match.SAME_MODEL if r >= fmt.SAME_MODEL_CORRELATION else Match.OTHER_MODEL, r)


def correlation(delta: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> float:
    """Pearson correlation of samples, each group of 32 over the delta's root mean square; 0 where undefined."""
    d = delta.astype(np.float64).reshape(-1, fmt.SAMPLES_PER_TENSOR)
    b = base.astype(np.float64).reshape(-1, fmt.SAMPLES_PER_TENSOR)
    rms = np.sqrt(np.mean(d * d, axis=1, keepdims=True))
    if not (np.isfinite(d).all() and np.isfinite(b).all()):
        return 0.0
    used = rms[:, 0] > 0
    d, b = (d[used] / rms[used]).ravel(), (b[used] / rms[used]).ravel()
    if d.size == 0:
        return 0.0
    d, b = d - d.mean(), b - b.mean()
    norm = float(np.sqrt(np.dot(d, d) * np.dot(b, b)))
    return float(np.dot(d, b)) / norm if norm > 0 else 0.0


def _sorted(names: Any) -> list[str]:
    return sorted(names, key=lambda name: str(name).encode("utf-8"))


def _digest(model: ModelFile) -> str:
    digest = hashlib.sha256()
    for name in _sorted(model.tensors):
        info = model.tensors[name]
        digest.update(f"{name} {type_name(info.type)} {ne_text(padded_ne(info.ne))}\n".encode())
        n, size = info.n_bytes, fmt.DIGEST_CHUNK_BYTES
        if n <= fmt.DIGEST_CHUNKS * size:
            digest.update(model.raw(name).data)
            continue
        for c in range(fmt.DIGEST_CHUNKS):
            digest.update(model.raw(name, c * (n - size) // (fmt.DIGEST_CHUNKS - 1), size).data)
    return digest.hexdigest()
