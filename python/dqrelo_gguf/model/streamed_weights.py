"""Weights of a directory whose shards lie elsewhere, as llama.cpp's conversion reads them.

All of the conversion opens a shard as `gguf.utility.SafetensorsLocal`, and the bytes of its tensors are what their `mmap_bytes`
gives. So both are the seam: a shard that stands for one elsewhere has tensors that are read by ranges.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.address.remote import Reader, Span
from dqrelo_gguf.address.stream import RemoteDirectory

_LOCAL: Any = gguf.utility.SafetensorsLocal
# By the folder that stands for it, of those that are in use.
_directories: weakref.WeakValueDictionary[Path, RemoteDirectory] = weakref.WeakValueDictionary()


class StreamedTensor:
    """A tensor whose bytes lie elsewhere, in place of a `gguf.utility.LocalTensor`.

    Args:
        tensor: as the header describes it.
        span: where its bytes are.
        reader: that reads them.
    """

    def __init__(self, tensor: Any, span: Span, reader: Reader) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self.span, self._reader = span, reader

    def mmap_bytes(self) -> npt.NDArray[np.uint8]:
        """Its bytes, read when they are asked for and not kept."""
        return self._reader.read(self.span)


def _open_shard(filename: Path) -> Any:
    """A file of weights, here or elsewhere."""
    shard = _LOCAL(filename)
    path = Path(filename).resolve()
    directory = _directories.get(path.parent)
    if directory is not None and path.name in directory.shards:
        file = directory.shards[path.name]
        for name, tensor in shard.tensors.items():
            span = Span(file, tensor.data_range.offset, tensor.data_range.size)
            shard.tensors[name] = StreamedTensor(tensor, span, directory.reader)
    return shard


def read_elsewhere(directory: RemoteDirectory) -> None:
    """Lets the conversion read the shards of a directory where they lie, for as long as the directory lives."""
    gguf.utility.SafetensorsLocal = _open_shard
    _directories[directory.path.resolve()] = directory


def announce(directory: RemoteDirectory, sources: list[Any]) -> None:
    """Says which tensors will be read next.

    Args:
        directory: where they lie.
        sources: what a graph of lazy tensors begins with (lazy_tensors.sources_of), in order.
    """
    directory.reader.announce(source.span for source in sources if isinstance(source, StreamedTensor))
