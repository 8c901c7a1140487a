"""Output files: checked before the work, written under a temporary name, renamed when whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dqrelo_gguf.errors import DiskFullError, InputError, OutputExistsError, raise_os_error


def check_target(path: Path, force: bool, n_bytes: int = 0) -> None:
    """Checks that a file of n_bytes can be written.

    Raises:
        OutputExistsError: it exists, and replacing it was not asked for.
        InputError: it is a directory, or its directory does not exist.
        DiskFullError: there is no room for it.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected a file name")
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: exists. Use --force to replace it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise DiskFullError(f"{path}: needs {n_bytes} bytes, {path.parent.resolve()} has {free} free")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that becomes `path` when the block ends, or is removed after an exception.

    Raises:
        DiskFullError, InputError: a write failed.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temp.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    except OSError as e:
        raise_os_error(e, str(path))
    finally:
        temp.unlink(missing_ok=True)
