"""Second moments of what weights multiply, in a safetensors file: what a calibration measures, and conversions reuse.

A tensor for each group of weights that read the same rows, named after one of them: the mean of x x^T, float32 (n_in, n_in),
of a stack of experts (n_expert, n_in, n_in). The file's metadata say which other weights a tensor stands for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from dqrelo_gguf.compress.blocks import CPU
from dqrelo_gguf.compress.metric import DAMPING, Metric
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.model.vocabulary import EMBEDDING

FORMAT = "dqrelo-moments-1"
SELF = "self"  # the source of moments that is no file: text that the models write
# A matrix that is the embedding too: its rows are also read as they are, where plain errors count.
EMBEDDING_DAMPING = 1.0


class Moments:
    """An opened file. Metrics are made when they are asked for; those of the last group are kept.

    Args:
        path: of the file.

    Attributes:
        digest: SHA-256 of the file, in hex.

    Raises:
        InputError: it is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        require_file(path, "--calibration")
        try:
            self._file = cast("Any", safe_open(self.path, framework="pt"))
            metadata = dict(self._file.metadata() or {})
            names = set(self._file.keys())
        except (OSError, SafetensorError) as e:
            raise InputError(f"--calibration {self.path}: is not a readable safetensors file: {e}") from e
        if metadata.get("format") != FORMAT:
            raise InputError(f"--calibration {self.path}: was not written by dqrelo-convert --save-calibration")
        self._group = {name: name for name in names} | _aliases(metadata, self.path, names)
        with Path(self.path).open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._last: tuple[str, list[Metric]] | None = None

    def covers(self, name: str) -> bool:
        """Whether the file has something of a weight."""
        return name in self._group

    def metrics(self, name: str, n_in: int, n_mat: int, device: torch.device = CPU) -> list[Metric] | None:
        """The metric of each matrix of a weight, or None where the file has nothing of it.

        Args:
            name: of the weight.
            n_in: its row length.
            n_mat: its matrices; all share one metric where the file has one.
            device: where the metrics are made, the same one in every call.

        Raises:
            InputError: the file's tensor has another shape, or numbers that are no moments.
        """
        group = self._group.get(name)
        if group is None:
            return None
        if self._last is None or self._last[0] != group:
            self._last = None  # The old one need not lie beside the new one.
            self._last = group, self._read(group, DAMPING if name != EMBEDDING else EMBEDDING_DAMPING, device)
        found = self._last[1]
        self._check_fit(name, (n_in, n_mat), group, (found[0].H.shape[0], len(found)))
        return found * (n_mat // len(found))

    def input_norms(self, name: str, n_in: int, n_mat: int) -> list[torch.Tensor] | None:
        """The root mean square of each input of a weight's matrices, (n_in,) float32 each; None where the file has nothing of it.

        Raises:
            InputError: as in `metrics`.
        """
        group = self._group.get(name)
        if group is None:
            return None
        H = self._tensor(group)
        self._check_fit(name, (n_in, n_mat), group, (H.shape[-1], len(H)))
        norms = list(H.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt())
        return norms * (n_mat // len(norms))

    def _check_fit(self, name: str, wanted: tuple[int, int], group: str, found: tuple[int, int]) -> None:
        """Both are a row length and a number of matrices."""
        if found[0] != wanted[0] or found[1] not in (1, wanted[1]):
            raise InputError(
                f"--calibration {self.path}: tensor '{group}' is for {found[1]} matrices of row length {found[0]}, "
                f"weight '{name}' has {wanted[1]} of {wanted[0]}. It was made with another model"
            )

    def _tensor(self, group: str) -> torch.Tensor:
        """The moments of a group, (n_mat or 1, n_in, n_in)."""
        H: torch.Tensor = self._file.get_tensor(group)
        if H.dtype != torch.float32 or H.ndim not in (2, 3) or H.shape[-1] != H.shape[-2]:
            raise InputError(f"--calibration {self.path}: tensor '{group}' is no square float32 matrix")
        if not bool(torch.isfinite(H).all()) or not torch.equal(H, H.mT):
            raise InputError(f"--calibration {self.path}: tensor '{group}' is not finite and symmetric")
        return H.reshape(-1, *H.shape[-2:])

    def _read(self, group: str, damping: float, device: torch.device) -> list[Metric]:
        try:
            return [Metric(matrix.to(device), damping) for matrix in self._tensor(group)]
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            raise InputError(f"--calibration {self.path}: tensor '{group}' is not positive semidefinite") from e


def _aliases(metadata: Mapping[str, Any], path: str, names: set[str]) -> dict[str, str]:
    try:
        found = json.loads(metadata.get("aliases", "{}"))
    except ValueError as e:
        raise InputError(f"--calibration {path}: its aliases are no JSON") from e
    if not isinstance(found, dict) or not all(isinstance(v, str) and v in names for v in found.values()):
        raise InputError(f"--calibration {path}: its aliases name tensors that it does not have")
    return found
