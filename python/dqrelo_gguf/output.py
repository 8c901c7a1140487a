"""Output files: checked before the work, written under a temporary name, renamed when whole."""

from __future__ import annotations

import contextlib
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


class NewFile:
    """A file that grows under a temporary name beside its target, and gets the target's name when it is whole.

    Args:
        path: the target.
        force: replace a target that is there by then.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self._path = path
        self._force = force
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._file: BinaryIO | None = None

    def open(self) -> BinaryIO:
        """Creates the file under its temporary name."""
        self._file = self._temporary.open("xb")
        return self._file

    def finish(self) -> None:
        """Gives the file its name, once its bytes are on the disk.

        Raises:
            OutputExistsError: another program made the target meanwhile.
        """
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._path.exists() and not self._force:
            raise OutputExistsError(f"{self._path}: was made by another program meanwhile. Use --force to replace it")
        self._temporary.replace(self._path)
        _sync_directory(self._path.parent)

    def discard(self) -> None:
        """Removes what is not finished; there may be a file without a handle after an interrupt."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # What could not be flushed is thrown away here.
                self._file.close()
            self._file = None
        self._temporary.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, force: bool) -> Iterator[BinaryIO]:
    """A `NewFile` that is finished when the block ends, and discarded after an exception.

    Raises:
        DiskFullError, InputError: a write failed.
        OutputExistsError: another program made the target meanwhile.
    """
    new = NewFile(path, force)
    try:
        yield new.open()
        new.finish()
    except OSError as e:
        raise_os_error(e, str(path))
    finally:
        new.discard()


def _sync_directory(directory: Path) -> None:
    """Makes a rename last through a power cut, where the system lets a directory be synced."""
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
