"""Processes that want the same file: one of them fetches it, the others wait, and say so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqrelo_gguf.errors import printable

SILENT_SECONDS = 2.0  # A wait that is longer is told, because it looks as if nothing happened.


@contextmanager
def turn(target: Path, lock: Path | None = None, label: str | None = None) -> Iterator[None]:
    """Lets one process at a time work on a target. The system ends the turn of one that dies.

    Args:
        target: what is worked on.
        lock: the file that stands for it; by default beside it.
        label: what a user calls it; by default the target's path.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock or target.with_name(f"{target.name}.lock"))
    try:
        held.acquire(timeout=SILENT_SECONDS)
    except Timeout:
        what = printable(label or str(target))
        print(f"{what}: another process has it in work; waiting until it is done", file=sys.stderr, flush=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()
