"""Files in and out of the system's page cache."""

from __future__ import annotations

import os
from pathlib import Path

READ_BYTES = 1 << 20  # bytes that a plain copy program reads at once


def drop_from_page_cache(path: Path) -> None:
    """Makes the next read of a file come from the disk. Nothing may have it mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # Pages that are not written yet would stay.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(path: Path) -> None:
    """Reads a file from its beginning to its end."""
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
