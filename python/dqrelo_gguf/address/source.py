"""What a download reads from: bytes of a file elsewhere, by ranges where its server has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class SourceChangedError(Exception):
    """The file is another one than when its reading began. A download begins anew, once."""


class UnreachableError(Exception):
    """A connection failed, or ended early; another try may help. Its text is shown to the user.

    Args:
        text: what happened.
        pause_seconds: before the next try, where the server asks for it.
    """

    def __init__(self, text: str, pause_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.pause_seconds = pause_seconds


@dataclass(frozen=True)
class Digest:
    """What the bytes of a file must hash to, as its source says.

    Args:
        algorithm: a name of hashlib's, or "git-sha1", git's hash of a blob.
        value: in hexadecimal digits, lower case.
    """

    algorithm: str
    value: str

    def hasher(self, n_bytes: int) -> hashlib._Hash:
        """To be given the whole file, which has this many bytes."""
        if self.algorithm != "git-sha1":
            return hashlib.new(self.algorithm, usedforsecurity=False)
        made = hashlib.sha1(usedforsecurity=False)
        made.update(f"blob {n_bytes}\0".encode())
        return made


@dataclass(frozen=True)
class FileFacts:
    """What a source says of its file.

    Args:
        n_bytes: of it; None where the server does not say.
        version: its ETag, or another text that changes with it; None where there is none.
        has_ranges: a part can be read by itself, and is known to be of the same version.
        digest: of its bytes; None where the source gives none.
    """

    n_bytes: int | None
    version: str | None
    has_ranges: bool
    digest: Digest | None = None


class Source(Protocol):
    """A file elsewhere. Any number of threads may read it."""

    @property
    def label(self) -> str:
        """Messages call it so; it holds no credentials."""
        ...

    def facts(self) -> FileFacts:
        """Asks for what is known of the file.

        Raises:
            InputError: there is none, or it may not be read.
            UnreachableError: the server could not be asked.
        """
        ...

    def read(self, start: int, end: int | None, version: str | None) -> Iterator[bytes]:
        """Bytes [start, end) in pieces; all of the file where `end` is None, which sources without ranges want.

        Raises:
            SourceChangedError: it has another version.
            UnreachableError: the connection failed or ended early, after what was yielded.
            InputError: it may not be read.
        """
        ...
