"""The two models that are compared, in memory side by side or one after the other: the fine-tune, and the base with deltas."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.convert.report import bytes_text
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.room import SEQUENTIAL_FILE_BYTES, Room
from dqrelo_gguf.file.model_file import shards
from dqrelo_gguf.memory import available_bytes
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Files:
    """The models, and how they run.

    Args:
        base: the base GGUF.
        tuned: the fine-tune's.
        deltas: of the base.
        n_threads: None for all cores.
        n_gpu_layers: -1 for all.
        allow_other_base: take deltas of another quantisation of the base.
        is_sequential: keep one model in memory at a time.
        folder: for logits that wait in a file.
    """

    base: Path
    tuned: Path
    deltas: tuple[Path, ...]
    n_threads: int | None
    n_gpu_layers: int
    allow_other_base: bool
    is_sequential: bool
    folder: Path

    def open(self, path: Path, room: Room) -> Runtime:
        """A model with a context."""
        return Runtime(
            path,
            n_ctx=room.n_ctx,
            n_seq_max=room.n_seq,
            n_batch=room.n_ubatch,
            n_ubatch=room.n_ubatch,
            n_threads=self.n_threads,
            n_gpu_layers=self.n_gpu_layers,
            flash_attn="off",  # So no sum is split by the number of threads.
            allow_other_base=self.allow_other_base,
        )

    def check_memory(self, work_bytes: int) -> str:
        """Checks that the models fit into memory.

        Args:
            work_bytes: what is needed beside them.

        Returns:
            What they need, for people.

        Raises:
            InputError: they do not fit.
        """
        available = available_bytes()
        base, tuned = (sum(f.stat().st_size for f in shards(p)) for p in (self.base, self.tuned))
        deltas = sum(p.stat().st_size for p in self.deltas)
        needed = (max(base + deltas, tuned) if self.is_sequential else base + deltas + tuned) + work_bytes
        need = (
            f"needs up to {bytes_text(needed)} of memory (base {bytes_text(base)}, fine-tune {bytes_text(tuned)}, deltas "
            f"{bytes_text(deltas)}, work {bytes_text(work_bytes)})"
        )
        if available is not None and needed > available:
            hint = "" if self.is_sequential else ". Use --sequential, which holds one model at a time"
            raise InputError(f"{need}, {bytes_text(available)} are available{hint}")
        return need


class Store(Protocol):
    """Rows of logits of the fine-tune that wait for the other side; they come out in the order in which they went in."""

    def put(self, rows: F32) -> None: ...
    def take(self, shape: tuple[int, int]) -> F32: ...
    def clear(self) -> None: ...


class MemoryStore:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: list[F32] = []

    def put(self, rows: F32) -> None:
        self._rows.append(rows)

    def take(self, shape: tuple[int, int]) -> F32:
        rows = self._rows.pop(0)
        assert rows.shape == shape
        return rows

    def clear(self) -> None:
        self._rows.clear()


class FileStore:
    """Rows in a file without a name."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def put(self, rows: F32) -> None:
        self._file.write(rows.data.cast("B"))

    def take(self, shape: tuple[int, int]) -> F32:
        rows = np.empty(shape, np.float32)
        self._file.seek(self._at)
        self._file.readinto(rows.data.cast("B"))  # type: ignore[attr-defined]  # It is a buffered file.
        self._at += rows.nbytes
        return rows

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._at = 0


class Sides:
    """Both sides during a phase of the measurement; a context manager.

    Args:
        files: the models.
        tuned_room: context of the fine-tune.
        base_room: context of the base.
    """

    def __init__(self, files: Files, tuned_room: Room, base_room: Room) -> None:
        self._files = files
        self._rooms = tuned_room, base_room
        self._stack = ExitStack()
        self._tuned: Runtime | None = None
        self._base: tuple[Runtime, list[Delta | None]] | None = None
        self.store: Store = MemoryStore()

    def __enter__(self) -> Self:
        if self._files.is_sequential:
            self.store = FileStore(self._stack.enter_context(tempfile.TemporaryFile(dir=self._files.folder)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of rows that may wait; in memory they are those of one round."""
        return SEQUENTIAL_FILE_BYTES if self._files.is_sequential else 0

    @contextmanager
    def tuned(self) -> Iterator[Runtime]:
        """The fine-tune."""
        with ExitStack() as stack:
            if self._tuned is None:
                keeper = stack if self._files.is_sequential else self._stack
                self._tuned = keeper.enter_context(self._files.open(self._files.tuned, self._rooms[0]))
            try:
                yield self._tuned
            finally:
                self._tuned = None if self._files.is_sequential else self._tuned

    @contextmanager
    def base(self) -> Iterator[tuple[Runtime, list[Delta | None]]]:
        """The base, and what runs on it: itself (None) and the deltas, in order."""
        with ExitStack() as stack:
            if self._base is None:
                keeper = stack if self._files.is_sequential else self._stack
                rt = keeper.enter_context(self._files.open(self._files.base, self._rooms[1]))
                self._base = rt, [None, *(rt.load_delta(path) for path in self._files.deltas)]
            try:
                yield self._base
            finally:
                self._base = None if self._files.is_sequential else self._base
