"""Output files: checked before the work, written under a temporary name, renamed when whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dqrelo_gguf.errors import DiskFullError, InputError, OutputExistsError, raise_os_error


def check_outputs(outputs: Sequence[Path], inputs: Iterable[Path], force: bool) -> None:
    """Checks before the work that a command can write its outputs, and that none is one of its inputs or of the others.

    Args:
        outputs: the files that it will write.
        inputs: the files that it reads; they need not be there.
        force: replace outputs that exist.

    Raises:
        OutputExistsError, InputError, DiskFullError: it cannot.
    """
    read = {_identity(path): path for path in inputs}
    written: dict[object, Path] = {}
    for path in outputs:
        same = _identity(path)
        if same in read:
            raise InputError(f"{path}: is read by this command ({read[same]}). Give the output another name")
        if same in written:
            raise InputError(f"{path}: is the same file as the output {written[same]}. Give each output its own name")
        written[same] = path
    for path in outputs:
        check_target(path, force)


def _identity(path: Path) -> object:
    """Equal for two paths of the same file, through links of both kinds; of a file that is not there, for equal paths."""
    try:
        status = path.stat()
    except OSError:
        return path.resolve()
    return status.st_dev, status.st_ino


def check_target(path: Path, force: bool, n_bytes: int = 0) -> None:
    """Checks that a file of n_bytes can be written.

    Raises:
        OutputExistsError: it exists, and replacing it was not asked for.
        InputError: it is no regular file, or one that may not be written, or its directory is none in which files can be made.
        DiskFullError: there is no room for it.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = None  # What is not there, or not to be seen, shows where a file is made beside it.
    if mode is not None:
        _check_replaceable(path, mode, force)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")
    new = NewFile(path, force)
    try:
        new.open()
    except OSError as e:
        raise_os_error(e, f"{path}: cannot be written")
    finally:
        new.discard()
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise DiskFullError(f"{path}: needs {n_bytes} bytes, {path.parent.resolve()} has {free} free")


def _check_replaceable(path: Path, mode: int, force: bool) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a directory, expected a file name")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file, expected the name of one")
    if not force:
        raise OutputExistsError(f"{path}: exists. Use --force to replace it")
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: is write-protected. Give the output another name")


class NewFile:
    """A file that grows under a temporary name beside its target, and gets the target's name when it is whole.

    Args:
        path: the target.
        force: replace a target that is there by then.
        temporary: the name until then; None for one that no other file has.
    """

    def __init__(self, path: Path, force: bool, temporary: Path | None = None) -> None:
        self._path = path
        self._force = force
        self._temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._file: BinaryIO | None = None

    def open(self, again: bool = False) -> BinaryIO:
        """Creates the file under its temporary name, or opens the one that is there under it again."""
        self._file = self._temporary.open("r+b" if again else "xb")
        return self._file

    def close(self) -> None:
        """Leaves the file as it is under its temporary name."""
        if self._file is not None:
            self._file.close()
            self._file = None

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
        sync_directory(self._path.parent)

    def discard(self) -> None:
        """Removes what is not finished; there may be a file without a handle after an interrupt."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # What could not be flushed is thrown away here.
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):  # Such as for a name that is too long to be made.
            self._temporary.unlink()


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


def sync_directory(directory: Path) -> None:
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
