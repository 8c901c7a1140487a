"""Files elsewhere that stay there: bytes of them when they are wanted, all of the version that was there first.

Nothing of it is written down. Spans that are wanted next can be announced; some of them are then read ahead.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.address import reading
from dqrelo_gguf.address.reading import ask, read_range
from dqrelo_gguf.address.source import Source, SourceChangedError
from dqrelo_gguf.errors import InputError

# Announced spans are begun while so many bytes of them are neither there nor taken: connections are kept busy where spans are small.
AHEAD_BYTES = 64 << 20
_AFTER = "Run again; a conversion with --resume goes on"


class RemoteFile:
    """A file elsewhere, pinned to the version that it has now.

    Args:
        source: where it lies.
        n_expected: bytes that it must have, where something else than its server says so.

    Raises:
        NotThereError: there is none.
        InputError: it cannot be read, or not by ranges of a known version.
    """

    def __init__(self, source: Source, n_expected: int | None = None) -> None:
        facts = ask(source)
        if not facts.has_ranges or facts.n_bytes is None or facts.version is None:
            raise InputError(
                f"{source.label}: its server gives no ranges of a file, or no version (ETag) with them, which --stream needs. "
                "Leave out --stream: the file is then downloaded"
            )
        if n_expected is not None and n_expected != facts.n_bytes:
            raise InputError(f"{source.label}: has {facts.n_bytes} bytes, and is listed with {n_expected}. Run again")
        self._source = source
        self.n_bytes, self.version = facts.n_bytes, facts.version

    @property
    def label(self) -> str:
        """Messages call it so; it holds no credentials."""
        return self._source.label

    def read_into(self, out: npt.NDArray[np.uint8], start: int, stopped: threading.Event) -> None:
        """Fills an array with the bytes from `start` on, unless it is stopped.

        Raises:
            InputError: they cannot be read, or the file is another one by now.
        """

        def write(piece: bytes, at: int) -> None:
            out[at - start : at - start + len(piece)] = np.frombuffer(piece, np.uint8)

        try:
            span = start, start + len(out)
            if not read_range(self._source, self.version, span, write, stopped, after=_AFTER):
                raise InputError(f"{self.label}: its reading was stopped")
        except SourceChangedError:
            raise InputError(
                f"{self.label}: is another file than when the conversion began. Run again when it does not change"
            ) from None


class Span(NamedTuple):
    """Bytes [start, start + n_bytes) of a file."""

    file: RemoteFile
    start: int
    n_bytes: int


class _Fetch:
    """A span that is being read, in ranges side by side."""

    def __init__(self, span: Span, pool: ThreadPoolExecutor) -> None:
        self._out = np.empty(span.n_bytes, np.uint8)
        self._stopped = threading.Event()
        step = reading.RANGE_BYTES
        self._parts: list[Future[None]] = [
            pool.submit(span.file.read_into, self._out[at : at + step], span.start + at, self._stopped)
            for at in range(0, span.n_bytes, step)
        ]

    def take(self) -> npt.NDArray[np.uint8]:
        for part in self._parts:
            part.result()
        return self._out

    def stop(self) -> None:
        """Ends what is still being read of it."""
        self._stopped.set()
        for part in self._parts:
            part.cancel()


class Reader:
    """Reads spans over a few connections. It is for one thread at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(reading.N_CONNECTIONS)
        self._begun: dict[Span, _Fetch] = {}
        self._announced: deque[Span] = deque()
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def announce(self, spans: Iterable[Span]) -> None:
        """Says what will be read next, in order. What was announced before and not read is forgotten."""
        self._stop()
        self._announced = deque(spans)

    def read(self, span: Span) -> npt.NDArray[np.uint8]:
        """The bytes of a span; a new array.

        Raises:
            InputError: they cannot be read, or the file is another one by now.
        """
        fetch = self._begun.pop(span, None) or _Fetch(span, self._pool)
        try:
            self._begin_announced(span)
            return fetch.take()
        except (
            BaseException
        ):  # Of an interrupt, too: nothing may go on in the pool that the end of the program waits for.
            fetch.stop()
            self._stop()
            raise

    def _stop(self) -> None:
        for fetch in self._begun.values():
            fetch.stop()
        self._begun.clear()
        self._announced.clear()

    def _begin_announced(self, taken: Span) -> None:
        if self._announced and self._announced[0] == taken:
            self._announced.popleft()
        while self._announced and sum(s.n_bytes for s in self._begun) + self._announced[0].n_bytes <= AHEAD_BYTES:
            span = self._announced.popleft()
            self._begun[span] = _Fetch(span, self._pool)
