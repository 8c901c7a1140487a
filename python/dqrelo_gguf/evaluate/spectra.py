"""Singular values of the delta and of what each compressed delta leaves of it, for some weights of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.compress.spectrum import singular_values
from dqrelo_gguf.convert.encode import delta_of
from dqrelo_gguf.convert.report import kind, layer
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.progress import Phases

F32 = npt.NDArray[np.float32]

MAX_WEIGHTS = 16
MAX_ELEMENTS = 1 << 26  # of a weight; about 16 bytes each are held
MAX_OPERATIONS = 1e13  # in all; some minutes on a few cores
_EIGEN_OPERATIONS = 10  # n^3 that eigenvalues of n x n take, in the time of as many operations of a product
N_POINTS = 200
_N_FIRST = 16  # The first singular values are all kept: they differ most.


@dataclass(frozen=True)
class WeightSpectra:
    """Of one weight; of a stack of experts the first matrix.

    Args:
        name: the weight's.
        ne: its shape in ggml's order.
        numbers: which singular values are kept, from 1; [n_kept].
        delta: those of D = W_ft - W_base, [n_kept].
        residuals: of each delta file, those of D - D_hat, [n_kept].
        errors: of each delta file, |D - D_hat| / |D|.
    """

    name: str
    ne: tuple[int, ...]
    numbers: list[int]
    delta: list[float]
    residuals: list[list[float]]
    errors: list[float]


@dataclass(frozen=True)
class Choice:
    """Which weights are measured, and which kinds are not, because they are too large."""

    names: list[str]
    kinds_left_out: list[str]


def choose(shapes: Mapping[str, tuple[int, ...]], n_deltas: int) -> Choice:
    """The weights whose spectra are measured: of each kind of matrix that of the middle layer, then of the first, then of the last.

    Args:
        shapes: of all weights in ggml's order.
        n_deltas: delta files, each with a residual.
    """
    kinds: dict[str, list[str]] = {}
    for name, ne in shapes.items():
        if is_matrix(ne):
            kinds.setdefault(kind(name), []).append(name)
    for names in kinds.values():
        names.sort(key=lambda name: layer(name) or 0)
    wanted = [pick(names) for pick in (_middle, _first, _last) for names in kinds.values()]
    chosen, left = list[str](), MAX_OPERATIONS
    for name in dict.fromkeys(wanted):
        n = (1 + n_deltas) * _operations(shapes[name])
        if len(chosen) < MAX_WEIGHTS and n <= left and prod(shapes[name]) <= MAX_ELEMENTS:
            chosen.append(name)
            left -= n
    measured = set(map(kind, chosen))
    return Choice([n for n in shapes if n in chosen], [k for k in kinds if k not in measured])


def _middle(names: list[str]) -> str:
    return names[len(names) // 2]


def _first(names: list[str]) -> str:
    return names[0]


def _last(names: list[str]) -> str:
    return names[-1]


def _operations(ne: tuple[int, ...]) -> float:
    n_short, n_long = sorted(ne[:2])
    return 2.0 * n_short**2 * n_long + _EIGEN_OPERATIONS * n_short**3


def measure_spectra(
    base: GgufModel,
    tuned: GgufModel,
    deltas: Sequence[DeltaReader],
    choice: Choice,
    *,
    phases: Phases,
    n_threads: int | None = None,
) -> Iterator[WeightSpectra]:
    """The chosen weights, one after the other; those that the fine-tune did not change are left out.

    Args:
        base: what the deltas run on.
        tuned: the fine-tune.
        deltas: the delta files.
        choice: which weights.
        phases: shows the progress.
        n_threads: None for all cores. Does not change the result.
    """
    sizes = {name: prod(base.shapes[name]) for name in choice.names}
    with open_blocks(n_threads) as blocks, phases("spectra", sum(sizes.values())) as progress:
        for name, n in sizes.items():
            D = _first_matrix(delta_of(Pair(name, base.shapes[name], name), base, tuned, blocks))
            if D.any():
                yield _spectra(name, base.shapes[name], D, deltas, blocks)
            progress.step(n, name)


def _first_matrix(values: F32) -> F32:
    first: F32 = values.reshape(-1, *values.shape[-2:])[0]
    return first


def _spectra(name: str, ne: tuple[int, ...], D: F32, deltas: Sequence[DeltaReader], blocks: Blocks) -> WeightSpectra:
    values = singular_values(torch.from_numpy(D), blocks).numpy()
    kept = kept_numbers(len(values))
    residuals, errors = list[list[float]](), list[float]()
    for reader in deltas:
        is_changed = any(w.name == name for w in reader.weights)
        R = D - _first_matrix(reader.reconstruct(name)) if is_changed else D
        left = singular_values(torch.from_numpy(R), blocks).numpy()
        residuals.append(left[kept].tolist())
        errors.append(float(np.linalg.norm(left) / np.linalg.norm(values)))
    return WeightSpectra(name, ne, (kept + 1).tolist(), values[kept].tolist(), residuals, errors)


def kept_numbers(n: int) -> npt.NDArray[np.intp]:
    """Which of n singular values are kept, from 0: the first ones, and of the rest as many at equal distances."""
    return np.unique(np.concatenate([np.arange(min(n, _N_FIRST)), np.linspace(0, n - 1, N_POINTS).round()])).astype(
        np.intp
    )
