"""Who uses what of the cache, and since when: a marker beside each version, whose time is that of its last use.

The files' own times stay as they are: what was computed of a file is trusted while they do not change. Whoever resolves an address
holds its marker by a shared lock until the process ends, so that nothing is removed between the path and the reading; what removes
a version needs that lock for itself. On file systems without such locks nothing is held.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SUFFIX = ".used"

# Each costs a descriptor. Who resolves more addresses than this has read the first ones long ago.
MAX_HELD = 64
_N_TRIES = 100

_held: dict[Path, int] = {}
_changing = threading.Lock()


def use(folder: Path, version: str) -> None:
    """Notes that a version is used now, and holds it. A marker that cannot be made is no reason to stop.

    Args:
        folder: of the address.
        version: a name in it, which need not be there yet.
    """
    path = folder / f"{version}{SUFFIX}"
    with contextlib.suppress(OSError):
        if sys.platform == "win32":  # A file that is open cannot be removed there.
            path.touch()
            return
        with _changing:
            descriptor = _held.pop(path, None)
            if descriptor is not None and os.fstat(descriptor).st_nlink == 0:  # Somebody removed the whole cache.
                os.close(descriptor)
                descriptor = None
            if descriptor is None:
                descriptor = _shared(path)
            _held[path] = descriptor
            os.utime(descriptor)
            while len(_held) > MAX_HELD:
                os.close(_held.pop(next(iter(_held))))


def _shared(path: Path) -> int:
    """A marker that is held together with others who use the same version."""
    for _ in range(_N_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # The folder was removed, as nothing was left in it.
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink > 0:  # Otherwise its version was removed while this one waited.
                os.set_inheritable(descriptor, True)  # llama-server takes this process over, and reads files again.
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise FileNotFoundError(path)


@contextmanager
def alone(name: str, folder: int, create: bool = True) -> Iterator[os.stat_result | None]:
    """Takes a lock file for this process alone, if that can be had at once.

    Args:
        name: of the file.
        folder: the descriptor of its folder.
        create: make it where it is not there.

    Yields:
        What the file is; None where another process holds it.

    Raises:
        OSError: it cannot be opened, is a link, or the file system has no locks.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    descriptor = os.open(name, flags, 0o666, dir_fd=folder)
    try:
        yield os.fstat(descriptor) if _is_taken(descriptor) else None
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0
