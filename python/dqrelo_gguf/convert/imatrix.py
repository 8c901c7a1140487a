"""The importance matrix that llama-imatrix writes as GGUF: of each weight, sums of the squares of its inputs.

Tensors `NAME.in_sum2`, F32 (n_in, n_mat) in ggml's order, and `NAME.counts`, F32 (1, n_mat): how many inputs were summed up.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.file.layout import Type, stripped_ne
from dqrelo_gguf.file.open_file import require_file

OPTION = "--imatrix"
_SUMS, _COUNTS = ".in_sum2", ".counts"


class Imatrix:
    """An opened file.

    Args:
        path: of the file.

    Raises:
        InputError: it is no such file.
        FormatError: it is no sound GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        require_file(path, OPTION)
        self._file = GGUFFile(path)
        if self._file.value("general.type") != "imatrix":
            raise InputError(
                f"{OPTION} {self.path}: was not written by llama-imatrix, whose files have general.type 'imatrix'"
            )

    def covers(self, name: str) -> bool:
        """Whether the file has something of a weight."""
        return name + _SUMS in self._file.tensors

    def input_norms(self, name: str, n_in: int, n_mat: int) -> list[torch.Tensor] | None:
        """The root mean square of each input of a weight's matrices, (n_in,) float32 each; None where the file has nothing of it.

        A matrix that no input reached, such as an expert that no token was sent to, has ones.

        Raises:
            InputError: the file's tensors have other shapes or types, or numbers that are no sums of squares.
        """
        if not self.covers(name):
            return None
        sums = self._values(name + _SUMS, (n_in, n_mat)).reshape(n_mat, n_in)
        counts = self._values(name + _COUNTS, (1, n_mat)).reshape(n_mat, 1)
        norms = np.where(counts > 0, np.sqrt(sums / np.maximum(counts, 1)), 1)
        return list(torch.from_numpy(norms.astype(np.float32)))

    def _values(self, tensor: str, ne: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        info = self._file.tensors.get(tensor)
        where = f"{OPTION} {self.path}: tensor '{tensor}'"
        if info is None or info.type != Type.F32 or stripped_ne(info.ne) != stripped_ne(ne):
            raise InputError(f"{where} is missing, or not F32 of {ne[0]}x{ne[1]}. It was made with another model")
        values = self._file.raw(info).view("<f4").astype(np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError(f"{where} has a number that is no sum of squares")
        return values
