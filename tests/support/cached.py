"""Files in the cache of web servers and buckets, made without fetching them; and what tests do with those that were fetched."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from dqrelo_gguf.address import marks
from dqrelo_gguf.address.kept import Contents, contents, files_folder, opened_cache

DAY = 86400


def put(
    address: str, n_bytes: int = 100, days: float = 0.0, *, version: str = "1", names: tuple[str, ...] = ("x.gguf",)
) -> Path:
    """One version of an address, as a fetch leaves it.

    Args:
        address: what it is of.
        n_bytes: of each file.
        days: since it was used; without a marker for a negative number, as releases before there were any left it.
        version: the last one that is put is the current one.
        names: of its files.

    Returns:
        The folder of the version.
    """
    key = files_folder() / digest(address)
    folder = key / digest(version)
    folder.mkdir(parents=True)
    (key / "address").write_text(f"{address}\n")
    (key / "current").write_text(f"{folder.name}\n")
    (key / "current.lock").touch()
    for name in names:
        (folder / name).write_bytes(b"x" * n_bytes)
        (folder / f"{name.removesuffix('.partial')}.lock").touch()
        if name.endswith(".partial"):
            (folder / f"{name.removesuffix('.partial')}.ranges").write_text("{}\n")
    if days >= 0:
        marker = key / f"{folder.name}{marks.SUFFIX}"
        marker.touch()
        os.utime(marker, (time.time() - days * DAY,) * 2)
    return folder


def digest(text: str) -> str:
    """The name of a folder for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def look() -> Contents:
    """All of the cache."""
    with opened_cache() as root:
        return contents(root)


def let_go() -> None:
    """Holds nothing any more, as if the process had ended that resolved it."""
    for descriptor in marks._held.values():
        os.close(descriptor)
    marks._held.clear()
