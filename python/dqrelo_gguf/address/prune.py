"""Removes from the cache what was not used for long, and nothing that anybody uses or fetches (marks.py, download.py: the locks).

A file that a process has open or mapped stays readable for it: the system keeps the bytes until the last one closes it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from dqrelo_gguf.address import marks, settings
from dqrelo_gguf.address.kept import (
    CURRENT,
    LOCK,
    NOTES,
    PRUNING,
    Kept,
    contents,
    files_folder,
    names_in,
    opened,
    opened_cache,
)
from dqrelo_gguf.errors import InputError, printable, raise_os_error
from dqrelo_gguf.sizes import bytes_text

# How long a file is left alone whatever the bound: the server opens what its resolver has fetched after that process has ended.
IDLE_SECONDS = 60.0
_TURN_SECONDS = 3.0  # that one prune waits for another; each takes a fraction of that
_ASK_SECONDS = 0.05


@dataclass(frozen=True)
class Bounds:
    """What may go.

    Args:
        max_bytes: of all that is kept; beyond it the least recently used goes.
        older_than_seconds: what was last used before that goes.
        unfinished: what is not whole goes.
        idle_seconds: what was used since then stays.
    """

    max_bytes: int | None = None
    older_than_seconds: float | None = None
    unfinished: bool = False
    idle_seconds: float = 0.0

    def is_due(self, kept: Kept, now_ns: int) -> bool:
        """True for what goes however much there is."""
        idle = (now_ns - kept.used_ns) / 1e9
        is_old = self.older_than_seconds is not None and idle >= self.older_than_seconds
        return is_old or (self.unfinished and kept.is_unfinished)

    def may_go(self, kept: Kept, now_ns: int) -> bool:
        """True for what was not used just now."""
        return self.idle_seconds == 0 or (now_ns - kept.used_ns) / 1e9 >= self.idle_seconds


@dataclass
class Pruned:
    """What was done.

    Args:
        removed: what has gone, or would go.
        in_use: what would have gone, and is used or fetched by a process.
        problems: what could not be removed, a line each.
        n_left: bytes that are left.
    """

    removed: list[Kept] = field(default_factory=list)
    in_use: list[Kept] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    n_left: int = 0


def prune(bounds: Bounds, dry_run: bool = False, say: Callable[[Kept], None] = lambda _: None) -> Pruned:
    """Removes what the bounds do not allow, the least recently used first.

    Args:
        bounds: what may go.
        dry_run: remove nothing, and tell what would go.
        say: told of each that has gone.

    Raises:
        InputError: the cache cannot be read or written, or another process prunes it all the time.
    """
    done = Pruned()
    with opened_cache() as root:
        if root is None:
            return done
        with contextlib.nullcontext() if dry_run else _turn(root):
            found = contents(root)
            done.n_left = found.n_bytes
            done.problems += found.problems
            now_ns = time.time_ns()
            may_go = [kept for kept in found.kept if bounds.may_go(kept, now_ns)]
            due = {kept for kept in may_go if bounds.is_due(kept, now_ns)}
            for kept in sorted(
                may_go, key=lambda kept: kept not in due
            ):  # Of each, the least recently used comes first.
                is_over = bounds.max_bytes is not None and done.n_left > bounds.max_bytes
                if kept in due or (is_over and kept.n_bytes > 0):
                    _remove(kept, root, dry_run, say, done)
    return done


def keep_within_limit() -> None:
    """Removes what is beyond DQRELO_CACHE_MAX, where that is set; each is said on stderr. What goes wrong here stops nobody."""
    most = settings.cache_max_bytes()
    if most is None or sys.platform == "win32":
        return

    def say(kept: Kept) -> None:
        text = f"{kept.label}: removed from the cache ({bytes_text(kept.n_bytes)}, {settings.CACHE_MAX})"
        print(printable(text), file=sys.stderr, flush=True)

    with contextlib.suppress(OSError, InputError):
        prune(Bounds(max_bytes=most, idle_seconds=IDLE_SECONDS), say=say)


@contextmanager
def _turn(root: int) -> Iterator[None]:
    """Lets one process at a time decide what goes: two would each remove enough for both."""
    end = time.monotonic() + _TURN_SECONDS
    while True:
        with ExitStack() as stack:
            try:
                taken = stack.enter_context(marks.alone(PRUNING, root))
            except OSError as e:
                raise_os_error(e, f"{files_folder() / PRUNING}")
            if taken is not None:
                yield
                return
        if time.monotonic() > end:
            raise InputError(f"{files_folder()}: another process prunes it. Run again when that has ended")
        time.sleep(_ASK_SECONDS)


def _remove(kept: Kept, root: int, dry_run: bool, say: Callable[[Kept], None], done: Pruned) -> None:
    """Removes one version, and the folder of its address with the last one."""
    if kept.strange is not None:
        done.problems.append(
            f"{kept.label}: {kept.place}/{kept.strange} is no file of the cache, so the version is left alone"
        )
        return
    try:
        with opened(kept.key, root) as folder:
            has_gone = _would_go(kept, folder) if dry_run else _clear(kept, folder)
            if has_gone and not dry_run:
                _tidy(kept.key, folder, root)
    except FileNotFoundError:
        has_gone = True  # Somebody else removed it.
    except OSError as e:
        done.problems.append(f"{kept.label}: {kept.place} cannot be removed: {(e.strerror or str(e)).lower()}")
        return
    if not has_gone:
        done.in_use.append(kept)
        return
    done.removed.append(kept)
    done.n_left -= kept.n_bytes
    say(kept)


def _would_go(kept: Kept, folder: int) -> bool:
    """True if nobody holds it. Nothing is made for the answer."""
    try:
        with marks.alone(f"{kept.version}{marks.SUFFIX}", folder, create=False) as taken:
            if not _is_unused(kept, taken):
                return False
    except FileNotFoundError:
        pass  # It is of the time before there were markers.
    with opened(kept.version, folder) as inside:
        return not _is_fetched(inside)


def _clear(kept: Kept, folder: int) -> bool:
    """Removes the files of a version while nobody else can begin to use it. False if somebody does already."""
    marker = f"{kept.version}{marks.SUFFIX}"
    with marks.alone(marker, folder) as taken:
        if not _is_unused(kept, taken):
            return False
        try:
            with opened(kept.version, folder) as inside:
                if _is_fetched(inside):
                    return False
                for name in names_in(inside):
                    os.unlink(name, dir_fd=inside)
            os.rmdir(kept.version, dir_fd=folder)
        except FileNotFoundError:
            pass  # A marker alone, of a download that did not begin.
        os.unlink(marker, dir_fd=folder)
    return True


def _is_unused(kept: Kept, taken: os.stat_result | None) -> bool:
    """True if the marker is taken, and was not touched since the cache was looked at."""
    return taken is not None and kept.mark_ns in (None, taken.st_mtime_ns)


def _is_fetched(inside: int) -> bool:
    """True if a process downloads into a version's folder: one of an earlier release, which makes no marker, is seen by its lock alone."""
    for name in names_in(inside):
        if name.endswith(LOCK):
            with marks.alone(name, inside, create=False) as taken:
                if taken is None:
                    return True
    return False


def _tidy(key: str, folder: int, root: int) -> None:
    """Removes the folder of an address that has no version any more. Whoever begins one meanwhile makes what it needs."""
    with contextlib.suppress(OSError), marks.alone(f"{CURRENT}{LOCK}", folder) as taken:
        names = names_in(folder)
        if taken is not None and all(NOTES.fullmatch(name) for name in names):
            for name in sorted(names, key=lambda name: name.endswith(LOCK)):
                os.unlink(name, dir_fd=folder)
            os.rmdir(key, dir_fd=root)
