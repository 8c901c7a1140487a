"""A model's GGUF, whole or split: where its tensors lie, and values of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError, shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import GGUFFile, TensorInfo
from dqrelo_gguf.file.lfs import refuse_lfs_pointer
from dqrelo_gguf.file.open_file import file_problem
from dqrelo_gguf.file.values import PLAIN_DTYPES, dequantised

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<n>\d{5})\.gguf")


def shards(path: str | os.PathLike[str]) -> list[Path]:
    """All files of a model, in order: the given one, or every shard of `name-00001-of-0000N.gguf`.

    Raises:
        InputError: a file is missing, or is no regular one; the first such one is named.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected a GGUF file. {_from_directory(path)}")
    paths = _shard_paths(path)
    for p in paths:
        problem = file_problem(p)
        if problem is not None:
            others = f" ({len(paths)} shards belong to this model)" if len(paths) > 1 else ""
            raise InputError(f"{p}: {problem}{others}")
        refuse_lfs_pointer(p)
    return paths


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that may be read where this path is given: all shards of a model, or what lies in a directory."""
    path = Path(path)
    return list(path.iterdir()) if path.is_dir() else _shard_paths(path)


def _shard_paths(path: Path) -> list[Path]:
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or int(name["n"]) == 0:
        return [path]
    n = int(name["n"])
    return [path.with_name(f"{name['stem']}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]


def _from_directory(path: Path) -> str:
    found = sorted(path.glob("*.gguf"))
    if found:
        return f"Give one in it, such as {found[0]}"
    return "Make one of a Hugging Face directory with llama.cpp's convert_hf_to_gguf.py"


class ModelFile:
    """A model's GGUF, all shards as if they were one file.

    Args:
        path: the file, or any of its shards; or an address.

    Raises:
        InputError: a shard is missing, or it is an adapter.
        FormatError: a file is malformed, or the shards do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local(path, Kind.MODEL)
        self.files = [GGUFFile(p) for p in shards(self.path)]
        self._file_of: dict[str, GGUFFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for number, file in enumerate(self.files):
            self._check_shard(file, number)
            for name, info in file.tensors.items():
                if name in self.tensors:
                    file.fail(f"tensor '{shown(name)}' is in {self._file_of[name].path} too")
                self.tensors[name] = info
                self._file_of[name] = file
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
        """Bytes of a tensor's data, read when they are asked for."""
        return self._file_of[name].raw(self.tensors[name], start, n_bytes)

    def elements(self, name: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Dequantised values of a tensor at flat indices, reading only the blocks that hold them."""
        info = self.tensors[name]
        where = f"{self.path}: tensor '{shown(name)}'"
        block, block_bytes = gguf.GGML_QUANT_SIZES[info.type]
        blocks = np.stack([self.raw(name, int(i) * block_bytes, block_bytes) for i in indices // block])
        if info.type in PLAIN_DTYPES:
            return dequantised(blocks.view(PLAIN_DTYPES[info.type])[:, 0], info.type, where)
        values = dequantised(blocks, info.type, where).reshape(len(indices), block)
        picked: npt.NDArray[np.float32] = values[np.arange(len(indices)), indices % block]
        return picked

    def _check_shard(self, file: GGUFFile, number: int) -> None:
        n, no = file.value("split.count", 1), file.value("split.no", 0)
        if (n, no) != (len(self.files), number) and (n > 1 or len(self.files) > 1):
            file.fail(f"is shard {no + 1} of {n}, expected {number + 1} of {len(self.files)}. Was it renamed?")
