"""A model directory elsewhere as a directory here that has everything but the weights: of each shard its header alone.

A reader that knows nothing of it finds files that end behind their headers, and so an error, but never other numbers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.folders import Folder, open_folder
from dqrelo_gguf.address.parse import is_address, parse
from dqrelo_gguf.address.remote import Reader, RemoteFile, Span
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import DqreloError, InputError, printable, raise_os_error

# safetensors' own limit on a header, and ours on all headers of a model: one of 235 billion parameters has 5 MB.
MAX_HEADER_BYTES = 100_000_000
MAX_HEADERS_BYTES = 256 << 20
_LENGTH_BYTES = 8


class RemoteDirectory(os.PathLike[str]):
    """A model directory elsewhere, for as long as this object lives.

    Args:
        folder: what lies there.

    Raises:
        InputError: a header cannot be read.
    """

    def __init__(self, folder: Folder) -> None:
        self.label = folder.label
        self.shards: Mapping[str, RemoteFile] = dict(folder.shards)
        self.reader = Reader()
        parent = Path(tempfile.mkdtemp(prefix="dqrelo-stream-"))
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
        self.path = parent / folder.name
        try:
            self._fill(folder)
        except OSError as e:
            raise_os_error(e, str(self.path))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        """A digest of what a conversion of it depends on: bytes of small files, sizes and versions of shards."""
        made = hashlib.sha256()
        for path in sorted(self.path.iterdir()):
            made.update(f"{path.name}\0".encode())
            made.update(hashlib.sha256(path.read_bytes()).digest())
        for name, file in sorted(self.shards.items()):
            made.update(f"{name}\0{file.n_bytes}\0{file.version}\0".encode())
        return made.hexdigest()[:16]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Messages inside name the address, and not the directory that stands for it."""
        try:
            yield
        except DqreloError as e:
            text = str(e).replace(str(self.path), self.label)
            if text == str(e):
                raise
            raise type(e)(text) from e

    def _fill(self, folder: Folder) -> None:
        self.path.mkdir()
        for name, path in folder.small.items():
            (self.path / name).symlink_to(path.absolute())
        n_headers = 0
        for name, file in folder.shards.items():
            header = self._header(file)
            n_headers += len(header)
            if n_headers > MAX_HEADERS_BYTES:
                raise InputError(
                    f"{file.label}: the headers up to it have {n_headers} bytes, expected at most {MAX_HEADERS_BYTES}"
                )
            (self.path / name).write_bytes(header)

    def _header(self, file: RemoteFile) -> bytes:
        """The length of a header and the header, or of one that cannot be right the length alone: the check says why."""
        length = self.reader.read(Span(file, 0, min(_LENGTH_BYTES, file.n_bytes))).tobytes()
        n_header = int.from_bytes(length, "little")
        if len(length) < _LENGTH_BYTES or n_header > min(MAX_HEADER_BYTES, file.n_bytes - _LENGTH_BYTES):
            return length
        return length + self.reader.read(Span(file, _LENGTH_BYTES, n_header)).tobytes()


def streamed(path: str | os.PathLike[str]) -> Path | RemoteDirectory:
    """A fine-tune whose weights are read where they lie. A path, and what `file://` names, is what it is.

    Args:
        path: the address of a repository or a folder, or a path.

    Raises:
        InputError: it is no address, cannot be had, or is not in safetensors; or there is no network.
    """
    if isinstance(path, RemoteDirectory):
        return path
    if not is_address(path):
        return local(path, Kind.TUNED)
    found = parse(os.fspath(path).rstrip("/"))
    if isinstance(found, Path):
        return found
    directory = RemoteDirectory(open_folder(found))
    n_bytes = sum(file.n_bytes for file in directory.shards.values())
    print(
        f"{printable(directory.label)}: {len(directory.shards)} files of weights, {n_bytes / 1e9:.2f} GB, are read there",
        file=sys.stderr,
        flush=True,
    )
    return directory
