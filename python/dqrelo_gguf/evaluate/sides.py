"""The models that are compared, in memory side by side or one after the other: the fine-tune, the base with deltas, and rivals."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.room import SEQUENTIAL_FILE_BYTES, Room
from dqrelo_gguf.file.model_file import shards
from dqrelo_gguf.memory import available_bytes
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from dqrelo_gguf.sizes import bytes_text

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Files:
    """The models, and how they run.

    Args:
        base: the base GGUF.
        tuned: the fine-tune's.
        deltas: of the base.
        rivals: whole models that are compared beside the deltas.
        n_threads: None for all cores.
        n_gpu_layers: -1 for all.
        allow_other_base: take deltas of another quantisation of the base.
        is_sequential: keep one model in memory at a time.
        folder: for logits that wait in a file.
    """

    base: Path
    tuned: Path
    deltas: tuple[Path, ...]
    rivals: tuple[Path, ...]
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
        rivals = [sum(f.stat().st_size for f in shards(p)) for p in self.rivals]
        apart = [base + deltas, tuned, *rivals]
        needed = (max(apart) if self.is_sequential else sum(apart)) + work_bytes
        others = f", rivals {bytes_text(sum(rivals))}" if rivals else ""
        need = (
            f"needs up to {bytes_text(needed)} of memory (base {bytes_text(base)}, fine-tune {bytes_text(tuned)}, deltas "
            f"{bytes_text(deltas)}{others}, work {bytes_text(work_bytes)})"
        )
        if available is not None and needed > available:
            hint = "" if self.is_sequential else ". Use --sequential, which holds one model at a time"
            raise InputError(f"{need}, {bytes_text(available)} are available{hint}")
        return need


class Store(Protocol):
    """Rows of logits of the fine-tune that wait for the other models; they come out in the order in which they went in.

    `rewind` lets the next model take them from the first one on.
    """

    def put(self, rows: F32) -> None: ...
    def take(self, shape: tuple[int, int]) -> F32: ...
    def rewind(self) -> None: ...
    def clear(self) -> None: ...


class MemoryStore:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: list[F32] = []
        self._at = 0

    def put(self, rows: F32) -> None:
        self._rows.append(rows)

    def take(self, shape: tuple[int, int]) -> F32:
        rows = self._rows[self._at]
        assert rows.shape == shape
        self._at += 1
        return rows

    def rewind(self) -> None:
        self._at = 0

    def clear(self) -> None:
        self._rows.clear()
        self._at = 0


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

    def rewind(self) -> None:
        self._at = 0

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._at = 0


@dataclass(frozen=True)
class Host:
    """A model in memory, and what runs on it: itself (None), then its deltas."""

    name: str
    rt: Runtime
    models: list[Delta | None]


class Sides:
    """The models during a phase of the measurement; a context manager.

    Args:
        files: the models.
        rooms: contexts of the base, of the fine-tune and of each rival.
    """

    def __init__(self, files: Files, rooms: Sequence[Room]) -> None:
        self._files = files
        base, tuned, *rivals = rooms
        self._tuned = _Seat(files, files.tuned, (), tuned)
        self._hosts = [_Seat(files, files.base, files.deltas, base)]
        self._hosts += [_Seat(files, path, (), room) for path, room in zip(files.rivals, rivals, strict=True)]
        self._stack = ExitStack()
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

    @property
    def n_hosts(self) -> int:
        """Models beside the fine-tune that are loaded: the base, and every rival."""
        return len(self._hosts)

    @contextmanager
    def tuned(self) -> Iterator[Runtime]:
        """The fine-tune."""
        with self._taken(self._tuned) as host:
            yield host.rt

    @contextmanager
    def host(self, i: int) -> Iterator[Host]:
        """The base with its deltas (0), or a rival."""
        with self._taken(self._hosts[i]) as host:
            yield host

    @contextmanager
    def _taken(self, seat: _Seat) -> Iterator[Host]:
        """A model, loaded for as long as it is used, or until the phase ends."""
        with ExitStack() as stack:
            if seat.host is None:
                seat.load(stack if self._files.is_sequential else self._stack)
            assert seat.host is not None
            try:
                yield seat.host
            finally:
                seat.host = None if self._files.is_sequential else seat.host


@dataclass
class _Seat:
    """A model's place: it is loaded when it is first used."""

    files: Files
    path: Path
    deltas: tuple[Path, ...]
    room: Room
    host: Host | None = None

    def load(self, stack: ExitStack) -> None:
        """Loads it until the stack is closed."""
        rt = stack.enter_context(self.files.open(self.path, self.room))
        self.host = Host(self.path.name, rt, [None, *(rt.load_delta(path) for path in self.deltas)])
