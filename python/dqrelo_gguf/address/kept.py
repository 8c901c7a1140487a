"""What lies in the cache of web servers and object stores (cache.py says how), for people and for what removes it.

Everything is opened below the folder's own descriptor and no link is followed: whatever somebody planted there, nothing outside is seen.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dqrelo_gguf.address import marks, settings
from dqrelo_gguf.address.choose import shard_names
from dqrelo_gguf.errors import InputError, printable, raise_os_error

KEY = re.compile(r"[0-9a-f]{32}")
ADDRESS, CURRENT = "address", "current"
PRUNING = ".pruning"  # The lock of whoever removes something.
PARTIAL, LOCK = ".partial", ".lock"
# What an address's folder has beside its versions; an interrupted write leaves a file with a dot before it.
NOTES = re.compile(r"address|current|current\.lock|\.(address|current)\.[0-9a-f]{8}")
_BESIDE = (LOCK, ".ranges")  # What a version's folder has beside its files.
_MAX_NOTE_BYTES = 1 << 14
_BLOCK_BYTES = 512  # The unit of st_blocks, whatever the file system's own is.
_LAST_NS = 253_402_300_799 * 10**9  # The end of the year 9999: later times, which files can have, have no date.


@dataclass(frozen=True)
class Kept:
    """One version of what an address names: a file, or all parts of a split model.

    Args:
        key: the folder of the address.
        version: the folder in it.
        address: without its query; None where it was not noted.
        names: of the files; those that are not whole are among them.
        n_bytes: on the disk.
        used_ns: when it was last resolved, in ns since the epoch.
        mark_ns: the same by its marker alone; None where it has none.
        is_unfinished: a part is not whole, or not there.
        is_older: the address had another version when it was last resolved.
        strange: what lies in it that the cache did not put there, which is why it is left alone; None as a rule.
    """

    key: str
    version: str
    address: str | None
    names: tuple[str, ...]
    n_bytes: int
    used_ns: int
    mark_ns: int | None
    is_unfinished: bool
    is_older: bool
    strange: str | None

    @property
    def place(self) -> str:
        """Its folder, below the one of the cache."""
        return f"{self.key}/{self.version}"

    @property
    def label(self) -> str:
        """As messages show it."""
        return self.address or self.place


@dataclass(frozen=True)
class Contents:
    """All of the cache.

    Args:
        folder: where it is.
        kept: the least recently used first.
        n_others: files and folders that are none of the cache's.
        problems: what could not be read, a line each.
    """

    folder: Path
    kept: tuple[Kept, ...]
    n_others: int
    problems: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Of all that is kept."""
        return sum(kept.n_bytes for kept in self.kept)


def files_folder() -> Path:
    """Where the files are."""
    return settings.cache_folder() / "files"


@contextmanager
def opened(name: str | Path, folder: int | None = None) -> Iterator[int]:
    """The descriptor of a folder that is no link."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names_in(folder: int) -> list[str]:
    """The names in a folder that is open, in order."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


@contextmanager
def opened_cache() -> Iterator[int | None]:
    """The descriptor of the folder of files; None where nothing was fetched yet.

    Raises:
        InputError: it is a link or no folder, or may not be read; or the system has no descriptors of folders.
    """
    folder = files_folder()
    if sys.platform == "win32":
        raise InputError(
            f"{folder}: cannot be looked at on Windows by this command. Remove the folder to empty the cache"
        )
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which is not followed. Set {settings.CACHE} to where the cache is")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as e:
        raise_os_error(e, str(folder))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def contents(root: int | None) -> Contents:
    """Looks at all of the cache.

    Args:
        root: the descriptor of its folder; None where there is none.

    Raises:
        InputError: the folder cannot be read.
    """
    found = _Finder(files_folder())
    if root is not None:
        try:
            names = names_in(root)
        except OSError as e:
            raise_os_error(e, str(found.folder))
        for name in names:
            found.look_at_address(name, root)
    kept = sorted(found.kept, key=lambda kept: (kept.used_ns, kept.place))
    return Contents(found.folder, tuple(kept), found.n_others, tuple(found.problems))


class _Finder:
    """Collects what there is, folder by folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: list[Kept] = []
        self.n_others = 0
        self.problems: list[str] = []

    @contextmanager
    def _noting(self, place: str) -> Iterator[None]:
        """A place that has gone meanwhile is nothing; one that cannot be read is a problem, and the rest is looked at."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as e:
            self.problems.append(f"{self.folder / place}: {(e.strerror or str(e)).lower()}")

    def look_at_address(self, key: str, root: int) -> None:
        if key == PRUNING:
            return
        if not KEY.fullmatch(key) or not _is_folder(key, root):
            self.n_others += 1
            return
        with self._noting(key), opened(key, root) as folder:
            inside = {name: _status(name, folder) for name in names_in(folder)}
            marked = {name.removesuffix(marks.SUFFIX) for name in inside if name.endswith(marks.SUFFIX)}
            versions = {name for name, status in inside.items() if KEY.fullmatch(name) and _is_dir(status)}
            known = {f"{version}{marks.SUFFIX}" for version in marked if KEY.fullmatch(version)}
            self.n_others += sum(name not in versions | known and not NOTES.fullmatch(name) for name in inside)
            address, current = _note(ADDRESS, folder), _note(CURRENT, folder)
            for version in sorted(versions | {name for name in marked if KEY.fullmatch(name)}):
                with self._noting(f"{key}/{version}"):
                    files = _files(version, folder) if version in versions else {}
                    self.kept.append(_kept((key, version), address, current, inside, files))


def _kept(
    place: tuple[str, str],
    address: str,
    current: str,
    inside: Mapping[str, os.stat_result | None],
    files: Mapping[str, os.stat_result],
) -> Kept:
    """What one version is, by the files of its folder and those beside it."""
    key, version = place
    strange = sorted(name for name, status in files.items() if not stat.S_ISREG(status.st_mode))
    own = {name: status for name, status in files.items() if not name.endswith(_BESIDE) and name not in strange}
    is_unfinished = not own or any(name.endswith(PARTIAL) for name in own) or not _is_complete(own)
    mark, note = inside.get(f"{version}{marks.SUFFIX}"), inside.get(CURRENT)
    # Without a marker it is of the time before there were any: then each resolving wrote the note of the version.
    times = [status.st_mtime_ns for status in [*own.values(), *([note] if note and version == current else [])]]
    return Kept(
        key,
        version,
        address or None,
        tuple(sorted(own)),
        sum(_n_bytes(name, status) for name, status in files.items() if name not in strange),
        min(max(mark.st_mtime_ns if mark else max(times, default=0), 0), _LAST_NS),
        mark.st_mtime_ns if mark else None,
        is_unfinished,
        bool(current) and version != current and not is_unfinished,
        printable(strange[0]) if strange else None,
    )


def _is_complete(names: Mapping[str, os.stat_result]) -> bool:
    """False where parts of a split model are missing."""
    try:
        return all(part in names for part in shard_names(min(names), ""))
    except InputError:
        return True  # A name that no split model has.


def _n_bytes(name: str, status: os.stat_result) -> int:
    """What a file takes. A partial one has its full size from the start, and holes where nothing has come yet."""
    return min(status.st_size, status.st_blocks * _BLOCK_BYTES) if name.endswith(PARTIAL) else status.st_size


def _files(version: str, folder: int) -> dict[str, os.stat_result]:
    with opened(version, folder) as inside:
        found = {name: _status(name, inside) for name in names_in(inside)}
    return {name: status for name, status in found.items() if status is not None}


def _status(name: str, folder: int) -> os.stat_result | None:
    """What a name is, a link being one; None where it has gone meanwhile."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_dir(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _is_folder(name: str, folder: int) -> bool:
    return _is_dir(_status(name, folder))


def _note(name: str, folder: int) -> str:
    """The line of a small file; nothing where there is none that can be read."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return ""
    try:
        return printable(os.read(descriptor, _MAX_NOTE_BYTES).decode("utf-8", "replace"))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
