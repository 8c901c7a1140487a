"""A file that is open for reads at any position. No map: the reader of one ends by a signal when the file shrinks."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.errors import InputError, raise_os_error

# What is read at once for small reads that follow one another.
_WINDOW_BYTES = 1 << 20
_SEEKING = threading.Lock()


def _read_into(fd: int, view: memoryview, offset: int) -> int:
    """Reads some bytes at an offset; returns how many, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _SEEKING:  # Windows
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


NOT_REGULAR = "is not a regular file"


def file_problem(path: str | os.PathLike[str]) -> str | None:
    """Why there is no regular file under this path, as a message says it behind the path; None where there is one."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as e:
        return (e.strerror or str(e)).lower()
    return None if stat.S_ISREG(mode) else NOT_REGULAR


def require_file(path: str | os.PathLike[str], option: str = "") -> None:
    """Refuses what is no regular file before it is opened: nothing must wait for a FIFO's other end.

    Args:
        path: of the file.
        option: that names it, for the message.

    Raises:
        InputError: there is none.
    """
    problem = file_problem(path)
    if problem is not None:
        raise InputError(f"{option} {os.fspath(path)}: {problem}".lstrip())


class OpenFile:
    """A regular file. Any number of threads may read it.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without waiting: a FIFO would block until somebody writes into it. Regular files open as ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(path, flags)
            weakref.finalize(self, os.close, self._fd)
            status = os.fstat(self._fd)
        except OSError as e:
            if e.errno == errno.ENXIO:  # a socket, or a device without a driver
                raise InputError(f"{path}: {NOT_REGULAR}") from e
            raise_os_error(e, str(path))
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: {NOT_REGULAR}")
        self.n_bytes = status.st_size
        self._window = (0, b"")

    def array(self, offset: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Bytes [offset, offset + n_bytes), which lie inside the file, as a new array.

        Raises:
            InputError: they are gone, or cannot be read.
        """
        out = np.empty(n_bytes, np.uint8)
        done = 0
        while done < n_bytes:
            try:
                n = _read_into(self._fd, out.data[done:], offset + done)
            except OSError as e:
                raise_os_error(e, str(self.path))
            if n == 0:
                raise InputError(
                    f"{self.path}: ends at byte {os.fstat(self._fd).st_size}, it had {self.n_bytes} when it was opened. "
                    "Put a new file in place by renaming it"
                )
            done += n
        return out

    def window(self, offset: int) -> bytes:
        """The bytes from an offset on: as many as are read at once, fewer at the end of the file. Raises as array()."""
        return self.array(offset, min(_WINDOW_BYTES, self.n_bytes - offset)).tobytes()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes as array() has them, for small reads that follow one another. Raises as array()."""
        if n_bytes > _WINDOW_BYTES:
            return self.array(offset, n_bytes).tobytes()
        start, data = self._window
        if not start <= offset <= offset + n_bytes <= start + len(data):
            start, data = self._window = offset, self.window(offset)
        return data[offset - start : offset - start + n_bytes]
