"""Base identity: is this the base that a delta was made for? (docs/format.md, section 6)

Computed from the base file, all shards, in milliseconds: names, shapes, types and a few sampled bytes of each tensor,
and a few hundred dequantised values that survive another quantisation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.layout import ne_text, padded_ne, type_name
from dqrelo_gguf.file.model_file import ModelFile


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
