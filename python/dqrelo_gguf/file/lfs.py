"""Git LFS pointers: what a clone without git-lfs leaves in place of a large file."""

from __future__ import annotations

import stat
from pathlib import Path

from dqrelo_gguf.errors import InputError

_BEGIN = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 1024  # The specification's limit on a pointer.


def refuse_lfs_pointer(path: Path) -> None:
    """Raises an InputError if the file is a pointer; what cannot be read, or is no file, is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            return
        text = path.read_bytes()
    except OSError:
        return
    if text.startswith(_BEGIN):
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself. Run git lfs pull where it was cloned")
