"""A file elsewhere becomes a file here: in ranges side by side, and after an interruption from where it was.

`NAME.partial` grows beside the target, and `NAME.ranges` lists which ranges of it are on the disk, for which version of the
file. The target gets its name when every byte is there and has the digest that the source gives; nothing else has it before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dqrelo_gguf.address import reading, settings
from dqrelo_gguf.address.reading import ask, read_range, with_tries
from dqrelo_gguf.address.source import Digest, FileFacts, Source, SourceChangedError, UnreachableError
from dqrelo_gguf.address.turn import turn
from dqrelo_gguf.errors import DiskFullError, InputError, TooLargeError, raise_os_error
from dqrelo_gguf.output import sync_directory
from dqrelo_gguf.progress import Phases, Progress, Silent, phases_for_stderr

QUIET_BYTES = 8 << 20  # Files below it have no progress of their own.
_SEEKING = threading.Lock()
_HASH_BYTES = 8 << 20
MAX_RANGES = 512  # of a file: each costs a request or two, which the Hub counts; those of large files are longer
# Left free on the disk beside what is downloaded.
SPARE_BYTES = 64 << 20


def download(source: Source, facts: FileFacts, target: Path, lock: Path | None = None) -> None:
    """Downloads a file, unless the target is there. Of what takes a while, the progress is shown on stderr.

    Args:
        source: where it lies.
        facts: what the source says of it.
        target: its path here; the folder is made.
        lock: of processes that want it at the same time; by default beside the target.

    Raises:
        InputError: it cannot be read, changes all the time, or has another digest.
        DiskFullError: there is no room for it.
    """
    is_small = facts.n_bytes is not None and facts.n_bytes < QUIET_BYTES
    phases = Silent if is_small else phases_for_stderr("B")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with turn(target, lock, source.label):
            if not target.exists():
                _download(source, facts, target, phases)
    except OSError as e:
        raise_os_error(e, str(target))


def require_room(n_bytes: int, folder: Path, label: str) -> None:
    """Refuses what is too large for the limit or for the disk, before a byte of it is asked for.

    Raises:
        InputError, DiskFullError: it is.
    """
    if n_bytes > settings.max_bytes():
        raise TooLargeError(
            f"{label}: has {_gib(n_bytes)}, expected at most {_gib(settings.max_bytes())}",
            f". Set {settings.MAX_DOWNLOAD} to more GiB if that is right",
        )
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE_BYTES > free:
        raise DiskFullError(f"{label}: needs {_gib(n_bytes)}, and the disk of {folder} has {_gib(free)} free")


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def _download(source: Source, facts: FileFacts, target: Path, phases: Phases) -> None:
    """The work of one turn. A file that changes meanwhile is asked for anew, once."""
    partial = _Partial(target)
    for is_last in (False, True):
        try:
            if facts.n_bytes is not None and facts.has_ranges:
                _in_ranges(source, facts, facts.n_bytes, partial, phases)
            else:
                _in_one(source, facts, partial, phases)
            break
        except SourceChangedError:
            partial.discard()
            if is_last:
                raise InputError(f"{source.label}: changes while it is read. Run again when it does not") from None
            facts = ask(source)
    n_bytes = partial.file_path.stat().st_size
    if facts.digest is not None:
        _check_digest(source, facts.digest, partial, n_bytes, phases)
    partial.finish()


@dataclass(frozen=True)
class _Plan:
    """What the ranges of a partial file belong to."""

    version: str | None
    n_bytes: int
    range_bytes: int

    def head(self) -> str:
        """The first line of the list of ranges."""
        return json.dumps({"version": self.version, "n_bytes": self.n_bytes, "range_bytes": self.range_bytes})

    def ranges(self) -> range:
        """Where each range begins."""
        return range(0, self.n_bytes, self.range_bytes)

    def end(self, start: int) -> int:
        return min(start + self.range_bytes, self.n_bytes)


class _Partial:
    """What is here of a file, and which ranges of it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.file_path = target.with_name(f"{target.name}.partial")
        self._list_path = target.with_name(f"{target.name}.ranges")

    def there(self, plan: _Plan) -> set[int]:
        """Where the ranges begin that are whole. What belongs to another version is thrown away."""
        try:
            lines = self._list_path.read_text(encoding="ascii").split("\n")
            is_ours = lines[0] == plan.head() and self.file_path.stat().st_size == plan.n_bytes
        except (OSError, ValueError):
            is_ours = False
        if not is_ours:
            self.discard()
            return set()
        # A line without an end was being written; it is not counted.
        return {int(line) for line in lines[1:-1] if line.isdigit()} & set(plan.ranges())

    @contextmanager
    def grow(self, plan: _Plan) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The file in its full size, and the list of its ranges."""
        with self.file_path.open("r+b" if self.file_path.exists() else "w+b") as file:
            file.truncate(plan.n_bytes)
            is_new = not self._list_path.exists()
            with self._list_path.open("ab") as ranges:
                if is_new:
                    ranges.write(f"{plan.head()}\n".encode())
                    ranges.flush()
                yield file, ranges

    def discard(self) -> None:
        """Removes both."""
        for path in (self._list_path, self.file_path):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the file its name."""
        with self.file_path.open("r+b") as file:
            os.fsync(file.fileno())
        self.file_path.replace(self._target)
        sync_directory(self._target.parent)
        self._list_path.unlink(missing_ok=True)


def _in_ranges(source: Source, facts: FileFacts, n_bytes: int, partial: _Partial, phases: Phases) -> None:
    plan = _Plan(facts.version, n_bytes, max(reading.RANGE_BYTES, -(-n_bytes // MAX_RANGES)))
    there = partial.there(plan)
    missing = [start for start in plan.ranges() if start not in there]
    require_room(sum(plan.end(start) - start for start in missing), partial.file_path.parent, source.label)
    stopped = threading.Event()
    with partial.grow(plan) as (file, ranges), phases("fetching", n_bytes) as progress:
        name = _name(source)
        progress.step(n_bytes - sum(plan.end(s) - s for s in missing), name)

        def fetch(start: int) -> bool:
            return _fetch_range(source, facts.version, file, (start, plan.end(start)), stopped)

        for start in _finished(fetch, missing, stopped):
            ranges.write(f"{start}\n".encode())
            ranges.flush()
            progress.step(plan.end(start) - start, name)


def _finished(fetch: Callable[[int], bool], starts: list[int], stopped: threading.Event) -> Iterator[int]:
    """The starts of the ranges, each when it is there. After an error come those that were done by then."""
    failure: BaseException | None = None
    with ThreadPoolExecutor(reading.N_CONNECTIONS) as pool:
        running: dict[Future[bool], int] = {pool.submit(fetch, start): start for start in starts}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for start, future in [(running.pop(future), future) for future in done]:
                    error = future.exception()
                    if error is None and future.result():
                        yield start
                    failure = failure or error
                if failure is not None:
                    stopped.set()
                    running = {future: start for future, start in running.items() if not future.cancel()}
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure


def _fetch_range(
    source: Source, version: str | None, file: BinaryIO, span: tuple[int, int], stopped: threading.Event
) -> bool:
    """Reads a range into the file, on the disk; after an interruption from where it was. False if it was stopped."""
    if not read_range(source, version, span, partial(_write_at, file), stopped):
        return False
    os.fsync(file.fileno())  # The list must not know of a range that a power cut takes away.
    return True


def _name(source: Source) -> str:
    """Of the file, for a bar of the progress."""
    return source.label.rpartition("/")[2].partition("@")[0]


def _write_at(file: BinaryIO, piece: bytes, offset: int) -> None:
    if not hasattr(os, "pwrite"):
        with _SEEKING:  # Windows
            file.seek(offset)
            file.write(piece)
            file.flush()
        return
    view = memoryview(piece)
    while view:
        n = os.pwrite(file.fileno(), view, offset)
        view, offset = view[n:], offset + n


def _in_one(source: Source, facts: FileFacts, partial: _Partial, phases: Phases) -> None:
    """Reads a file whose server has no ranges, or does not say how large it is. An interruption begins it anew."""
    require_room(facts.n_bytes or 0, partial.file_path.parent, source.label)
    most = settings.max_bytes() if facts.n_bytes is None else facts.n_bytes

    def read() -> None:
        partial.discard()
        with partial.file_path.open("wb") as file, phases("fetching", facts.n_bytes or 0) as progress:
            n_bytes = _copy(source, facts, file, most, progress)
        if facts.n_bytes is not None and n_bytes < facts.n_bytes:
            raise UnreachableError(f"{source.label}: ended after {n_bytes} of {facts.n_bytes} bytes")

    with_tries(read)


def _copy(source: Source, facts: FileFacts, file: BinaryIO, most: int, progress: Progress) -> int:
    n_bytes = 0
    for piece in source.read(0, None, facts.version):
        n_bytes += len(piece)
        if n_bytes > most:
            raise TooLargeError(f"{source.label}: sends more than {most} bytes, and said nothing of them")
        file.write(piece)
        progress.step(len(piece), _name(source))
    return n_bytes


def _check_digest(source: Source, digest: Digest, partial: _Partial, n_bytes: int, phases: Phases) -> None:
    """Compares the bytes with what the source says of them.

    Raises:
        InputError: they are others; they are thrown away.
    """
    hasher = digest.hasher(n_bytes)
    with partial.file_path.open("rb") as file, phases("verifying", n_bytes) as progress:
        while piece := file.read(_HASH_BYTES):
            hasher.update(piece)
            progress.step(len(piece), _name(source))
    if hasher.hexdigest() != digest.value:
        with contextlib.suppress(OSError):
            partial.discard()
        raise InputError(
            f"{source.label}: its bytes have the {digest.algorithm} {hasher.hexdigest()[:16]}..., expected {digest.value[:16]}.... "
            "They are thrown away; run again"
        )
