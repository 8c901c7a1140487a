"""One range of a file elsewhere, whatever its server does: tried again after pauses, and after an interruption from where it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dqrelo_gguf.address.source import FileFacts, Source, UnreachableError
from dqrelo_gguf.errors import InputError

RANGE_BYTES = 16 << 20
N_CONNECTIONS = 8
N_TRIES = 5
FIRST_PAUSE_SECONDS = 0.5  # It doubles with every try.
MAX_PAUSE_SECONDS = 60  # that a server can ask for
KEPT = "Run again: what is here already is kept"


def with_tries(work: Callable[[], None], after: str = KEPT) -> None:
    """Does something over a connection, and again after a pause when that fails.

    Args:
        work: what to do.
        after: what the user can do when it failed every time.

    Raises:
        InputError: it failed every time.
    """
    for number in range(N_TRIES):
        try:
            work()
            return
        except UnreachableError as e:
            if number + 1 == N_TRIES:
                raise InputError(f"{e} ({N_TRIES} tries). {after}") from None
            time.sleep(max(FIRST_PAUSE_SECONDS * 2**number, min(e.pause_seconds, MAX_PAUSE_SECONDS)))


def ask(source: Source) -> FileFacts:
    """What a source says of its file, after several tries.

    Raises:
        InputError: it says nothing, or nothing that can be right.
    """
    found: list[FileFacts] = []
    with_tries(lambda: found.append(source.facts()))
    return found[0]


def read_range(
    source: Source,
    version: str | None,
    span: tuple[int, int],
    write: Callable[[bytes, int], None],
    stopped: threading.Event,
    *,
    after: str = KEPT,
) -> bool:
    """Reads the bytes [start, end) of a file; after an interruption from where it was.

    Args:
        source: where it lies.
        version: that it must have.
        span: start and end.
        write: takes each piece, and where in the file it begins.
        stopped: ends the work early.
        after: as for `with_tries`.

    Returns:
        False if it was stopped.

    Raises:
        SourceChangedError: the file has another version.
        InputError: it cannot be read.
    """
    at, end = span

    def read() -> None:
        nonlocal at
        if at == end:
            return
        for piece in source.read(at, end, version):
            if stopped.is_set():
                return
            if len(piece) > end - at:
                raise InputError(f"{source.label}: sent more bytes than it was asked for")
            write(piece, at)
            at += len(piece)
        if at < end:
            raise UnreachableError(f"{source.label}: the connection ended early")

    with_tries(read, after)
    return at == end
