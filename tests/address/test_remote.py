"""Bytes of files that stay elsewhere: whatever pieces they come in, some ahead, none after a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from dqrelo_gguf.address import remote
from dqrelo_gguf.address.remote import Reader, RemoteFile, Span
from dqrelo_gguf.address.source import FileFacts, SourceChangedError, UnreachableError
from dqrelo_gguf.errors import InputError
from tests.support.addresses import RANGE_BYTES

DATA = np.random.default_rng(4).bytes(7 * RANGE_BYTES + 11)


@dataclass
class Memory:
    """A source that counts, waits and fails as it is told to."""

    data: bytes = DATA
    facts_: FileFacts = field(default_factory=lambda: FileFacts(len(DATA), "v1", has_ranges=True))
    piece: int = 300
    asked: list[tuple[int, int | None]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    label: str = "memory://x"

    def __post_init__(self) -> None:
        self.gate.set()

    def facts(self) -> FileFacts:
        return self.facts_

    def read(self, start: int, end: int | None, version: str | None) -> Iterator[bytes]:
        assert version == "v1"
        self.asked.append((start, end))
        self.gate.wait(10)
        if self.failures:
            raise self.failures.pop()
        for at in range(start, end or len(self.data), self.piece):
            yield self.data[at : min(at + self.piece, end or len(self.data))]


@pytest.mark.parametrize(
    ("start", "n_bytes"), [(0, 8), (5, 0), (3, RANGE_BYTES), (1, 5 * RANGE_BYTES + 1), (0, len(DATA))]
)
def test_a_span_is_its_bytes(start: int, n_bytes: int) -> None:
    source = Memory()
    found = Reader().read(Span(RemoteFile(source), start, n_bytes))
    assert found.tobytes() == DATA[start : start + n_bytes]
    assert len(source.asked) == -(-n_bytes // RANGE_BYTES)


def test_an_interruption_goes_on_from_where_it_was() -> None:
    source = Memory()
    whole = Memory.read

    def cut(self: Memory, start: int, end: int | None, version: str | None) -> Iterator[bytes]:
        pieces = whole(self, start, end, version)
        yield next(pieces)
        if len(self.asked) < 3:
            raise UnreachableError("gone")
        yield from pieces

    source.read = cut.__get__(source)  # type: ignore[method-assign]
    assert Reader().read(Span(RemoteFile(source), 0, RANGE_BYTES)).tobytes() == DATA[:RANGE_BYTES]
    assert [start for start, _ in source.asked] == [0, 300, 600]


def test_announced_spans_are_read_ahead_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AHEAD_BYTES", 250)
    source, reader = Memory(), Reader()
    spans = [Span(RemoteFile(source), 100 * i, 100) for i in range(6)]
    reader.announce(spans)
    assert source.asked == []
    for i, span in enumerate(spans):
        assert reader.read(span).tobytes() == DATA[100 * i : 100 * i + 100]
        assert len(source.asked) <= i + 3  # The next two, and no more.
    assert sorted(source.asked) == [(100 * i, 100 * i + 100) for i in range(6)]  # Each once.


def test_what_was_not_announced_is_read_too() -> None:
    source, reader = Memory(), Reader()
    file = RemoteFile(source)
    reader.announce([Span(file, 0, 10), Span(file, 10, 10), Span(file, 20, 10)])
    for start in (50, 20, 0, 20):
        assert reader.read(Span(file, start, 10)).tobytes() == DATA[start : start + 10]


def test_a_failure_ends_what_else_is_read_and_no_other_reading() -> None:
    source, reader = Memory(), Reader()
    file = RemoteFile(source)
    reader.announce([Span(file, 0, 10), Span(file, 10, RANGE_BYTES)])
    source.failures = [InputError("no more"), InputError("no more")]
    with pytest.raises(InputError, match="no more"):
        reader.read(Span(file, 0, 10))
    source.failures = []
    assert reader.read(Span(file, 10, RANGE_BYTES)).tobytes() == DATA[10 : 10 + RANGE_BYTES]


def test_an_interrupt_does_not_leave_threads_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source, reader = Memory(), Reader()
    source.gate.clear()

    def interrupt(_self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(remote._Fetch, "take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.read(Span(RemoteFile(source), 0, len(DATA)))
    source.gate.set()
    reader._pool.shutdown(wait=True)
    assert len(source.asked) <= 8  # Those that had begun; the rest was taken out of the pool.


def test_another_version_is_named() -> None:
    source = Memory(failures=[SourceChangedError()])
    with pytest.raises(InputError, match="memory://x: is another file than when the conversion began"):
        Reader().read(Span(RemoteFile(source), 0, 10))


def test_more_bytes_than_were_asked_for() -> None:
    source = Memory()
    source.read = lambda *_: iter([DATA])  # type: ignore[method-assign]
    with pytest.raises(InputError, match="sent more bytes than it was asked for"):
        Reader().read(Span(RemoteFile(source), 0, 10))


def test_a_server_that_gives_up() -> None:
    source = Memory(failures=[UnreachableError("memory://x: gone")] * 5)
    with pytest.raises(InputError, match=r"memory://x: gone \(5 tries\)"):
        Reader().read(Span(RemoteFile(source), 0, 10))


@pytest.mark.parametrize(
    "facts",
    [
        FileFacts(10, "v1", has_ranges=False),
        FileFacts(None, "v1", has_ranges=True),
        FileFacts(10, None, has_ranges=True),
    ],
)
def test_a_file_that_cannot_be_read_by_ranges(facts: FileFacts) -> None:
    with pytest.raises(InputError, match="gives no ranges of a file, or no version"):
        RemoteFile(Memory(facts_=facts))


def test_a_size_that_was_listed_otherwise() -> None:
    with pytest.raises(InputError, match=f"has {len(DATA)} bytes, and is listed with 5"):
        RemoteFile(Memory(), 5)
