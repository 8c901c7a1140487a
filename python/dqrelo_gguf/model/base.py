"""Models as GGUF files, whole or split: names, metadata, and one dequantised weight at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, TensorInfo
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.values import PLAIN_DTYPES, dequantised


@dataclass(frozen=True)
class EndTokens:
    """Ids of the tokens that end an answer, as transformers' generate() takes them from a directory.

    Args:
        ids: in the order in which they are stated; at least one.
        is_list: they are a list, so they are all; a single id only says which one is meant.
    """

    ids: tuple[int, ...]
    is_list: bool


class Model(Protocol):
    """What the converter needs of a base, a reference or a fine-tune, wherever it comes from."""

    label: str  # Messages call it so.
    architecture: str

    @property
    def notes(self) -> list[str]:
        """What of its files is left out, for the report."""

    @property
    def end_tokens(self) -> EndTokens | None:
        """What it states beside its metadata keys."""

    @property
    def name(self) -> str:
        """The model's own name."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The weights' shapes in ggml's order, in file order."""

    def field(self, key: str) -> GGUFValue | None:
        """A metadata value."""

    def field_names(self) -> list[str]:
        """The metadata keys."""

    def load(self, name: str, blocks: Blocks) -> npt.NDArray[np.float32]:
        """A weight's values, (ne[2],) n_out, n_in; a new array."""


class GgufModel:
    """A model in GGUF form, of any type that gguf can dequantise.

    Args:
        path: the file, or any shard of a split one.

    Raises:
        InputError: it is an adapter, or a shard is missing.
        FormatError: a shard is not a sound GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = ModelFile(path)
        self.path = self.file.path
        self.label = str(self.path)
        self.architecture = self.file.architecture
        if not self.file.tensors:
            raise InputError(f"{self.label}: has no tensors, expected a model")
        self.infos: dict[str, tuple[GGUFFile, TensorInfo]] = {
            name: (file, info) for file in self.file.files for name, info in file.tensors.items()
        }
        self._shapes, self._scale_tensors = fold_scale_tensors({n: info.ne for n, (_, info) in self.infos.items()})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The weights' shapes, without the scale tensors that belong to a weight."""
        return self._shapes

    @property
    def name(self) -> str:
        """`general.name`, or the file name without extension."""
        return self.file.name

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def end_tokens(self) -> EndTokens | None:
        return None  # A GGUF has keys for them.

    def field_names(self) -> list[str]:
        return self.file.files[0].keys()

    def field(self, key: str) -> GGUFValue | None:
        return self.file.files[0].field(key)

    def type_of(self, name: str) -> str:
        """GGUF's name of a tensor's type."""
        return str(self.infos[name][1].type.name)

    def load(self, name: str, blocks: Blocks) -> npt.NDArray[np.float32]:
        """A weight dequantised, times its `.scale` tensor if it has one (see `fold_scale_tensors`)."""
        _, info = self.infos[name]
        out = np.empty((prod(info.ne[1:]), info.ne[0]), np.float32)

        def keep(s: slice, values: npt.NDArray[np.float32]) -> None:
            out[s] = values

        self.visit(name, blocks, keep)
        return out.reshape(tuple(reversed(info.ne)))

    def visit(self, name: str, blocks: Blocks, fn: Callable[[slice, npt.NDArray[np.float32]], None]) -> None:
        """Calls `fn` with every block of a weight's rows, counted over all its matrices, and the block's values.

        No array of the weight's size is made. The blocks come in any order, from several threads.
        """
        _, info = self.infos[name]
        scale = self._scale_of(name)
        slices = row_slices(prod(info.ne[1:]), info.ne[0])
        blocks.run(
            lambda s: fn(s, self._values(self._stored(name, s), info, scale, np.arange(s.start, s.stop))), slices
        )

    def load_rows(self, name: str, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Some of a weight's rows, counted over all its matrices: (len(rows), n_in)."""
        stored = np.concatenate([self._stored(name, slice(int(i), int(i) + 1)) for i in rows])
        return self._values(stored, self.infos[name][1], self._scale_of(name), rows)

    def _values(
        self,
        stored: npt.NDArray[Any],
        info: TensorInfo,
        scale: npt.NDArray[np.float32] | None,
        rows: npt.NDArray[np.intp],
    ) -> npt.NDArray[np.float32]:
        """The rows with the given numbers, dequantised and scaled; a new array."""
        values = self._dequantise(stored, info)
        if scale is None:
            return values
        scale_of_row = scale[rows // info.ne[1]][:, None] if scale.size > 1 else scale
        return values * scale_of_row

    def _scale_of(self, name: str) -> npt.NDArray[np.float32] | None:
        scale = self._scale_tensors.get(name)
        if scale is None:
            return None
        info = self.infos[scale][1]
        return self._dequantise(self._stored(scale, slice(0, info.n_elements // info.ne[0])), info).reshape(-1)

    def _stored(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Rows of a tensor as they lie in the file, (n_rows, row bytes or elements)."""
        file, info = self.infos[name]
        kind = PLAIN_DTYPES.get(info.type, np.dtype(np.uint8))
        n_row_bytes = info.n_bytes // (info.n_elements // info.ne[0])
        n_rows = rows.stop - rows.start
        raw = file.raw(info, rows.start * n_row_bytes, n_rows * n_row_bytes)
        return raw.view(kind).reshape(n_rows, -1)

    def _dequantise(self, rows: npt.NDArray[Any], info: TensorInfo) -> npt.NDArray[np.float32]:
        """Some rows of a tensor as float32."""
        return dequantised(rows, info.type, f"{self.label}: tensor '{info.name}'")


def fold_scale_tensors(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Separates the weights from the scale tensors that belong to them (NVFP4, BitNet).

    llama.cpp multiplies the product with `blk.0.attn_q.weight` by `blk.0.attn_q.scale`, one number a weight or one an
    expert, so both together are the weight. It ignores `.input_scale`. A `.scale` of another size is a weight of its
    own, such as the router's input scale of Gemma 4.

    Returns:
        The shapes of the weights, and the name of the scale tensor of each weight that has one.
    """
    scales: dict[str, str] = {}
    ignored = set()
    for name, ne in shapes.items():
        if not name.endswith(".weight"):
            continue
        stem = name.removesuffix("weight")
        ignored.add(stem + "input_scale")
        n_scale = prod(shapes.get(stem + "scale", (0,)))
        if n_scale == 1 or (len(ne) == 3 and n_scale == ne[2]):
            scales[name] = stem + "scale"
    ignored.update(scales.values())
    return {name: ne for name, ne in shapes.items() if name not in ignored}, scales
