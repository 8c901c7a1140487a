"""Which worker computes which weight, in which order, and what becomes of a weight whose worker is lost.

Results are taken in the order of the weights, because a file is written in order. So those that are done early wait in the
cluster, and there is a bound on what waits. On each worker it is as in a process (lanes.py): small weights have a thread each,
a large one has all of them, and nothing else runs beside it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dqrelo_gguf.convert.lanes import AHEAD, is_small
from dqrelo_gguf.convert.tasks import Task
from dqrelo_gguf.errors import DqreloError, InputError

# Workers that may be lost while they work on the same weight; it is taken to be the cause then.
MAX_LOSSES = 3
# Lost workers that the report names one by one.
_MAX_NOTES = 8

W = TypeVar("W")
R = TypeVar("R")


@dataclass(frozen=True)
class Worker:
    """A process of the cluster that is ready to compute.

    Args:
        key: tells it from all others, also from one that was lost on the same machine.
        n_threads: that it may use.
    """

    key: str
    n_threads: int


@dataclass(frozen=True)
class Ended:
    """A piece of work that came to its end.

    Args:
        ticket: of the work.
        error: why the weight cannot be converted; None where it can.
        lost: why the worker did not finish; None where it did.
    """

    ticket: int
    error: DqreloError | None = None
    lost: str | None = None


class LostError(Exception):
    """A result that was there is gone with the machine that held it."""


class Fleet(Protocol):
    """The workers."""

    @property
    def max_held_bytes(self) -> int:
        """How large all results may be together that are computed or wait."""

    def workers(self) -> Sequence[Worker]:
        """Those that are ready; none while some are being started.

        Raises:
            InputError: there are none, and none will come.
        """

    def start(self, worker: Worker, task: Task[W, R], weight: W, n_threads: int, /) -> int:
        """Begins a weight; returns a ticket."""

    def wait(self) -> Sequence[Ended]:
        """Waits for a while, and returns what ended."""

    def fetch(self, ticket: int, /) -> Any:
        """The result of a work that has ended without an error; it is no longer held after that.

        Raises:
            LostError: it is gone.
        """


def dispatch(task: Task[W, R], weights: Sequence[W], fleet: Fleet, notes: list[str]) -> Iterator[tuple[W, R]]:
    """Each weight with its result, in order.

    Args:
        task: what to do.
        weights: what to work on.
        fleet: the workers.
        notes: gets a line for each worker that was lost.

    Raises:
        DqreloError: a weight cannot be converted; workers were lost again and again; or none is left.
    """
    run = _Run(task, weights, fleet, notes)
    for index, weight in enumerate(weights):
        yield weight, run.result(index)


@dataclass(frozen=True)
class _Running:
    index: int
    worker: Worker
    is_alone: bool


class _Run(Generic[W, R]):
    def __init__(self, task: Task[W, R], weights: Sequence[W], fleet: Fleet, notes: list[str]) -> None:
        self._task, self._weights, self._fleet, self._notes = task, weights, fleet, notes
        self._largest = max(map(task.n_elements, weights), default=0)
        self._waiting = list(range(len(weights)))  # A heap: a weight that is lost comes first again.
        self._running: dict[int, _Running] = {}  # by ticket
        self._done: dict[int, int] = {}  # tickets by weight
        self._errors: dict[int, DqreloError] = {}
        self._losses: Counter[int] = Counter()
        self._n_held_bytes = 0

    def result(self, index: int) -> R:
        """The result of the next weight."""
        while True:
            self._start(index)
            if index in self._errors:
                raise self._errors[index]
            if index in self._done:
                try:
                    result: R = self._fleet.fetch(self._done.pop(index))
                except LostError as e:
                    self._lose(index, str(e))
                    continue
                self._n_held_bytes -= self._n_bytes(index)
                return result
            for ended in self._fleet.wait():
                self._end(ended)

    def _start(self, first: int) -> None:
        """Begins what there is room for, in order; `first` always has room, because all others wait for it."""
        workers = self._fleet.workers()
        n_ahead = AHEAD * sum(worker.n_threads for worker in workers)
        while self._waiting:
            index = self._waiting[0]
            if self._errors and index > min(self._errors):
                return
            is_held = self._n_held_bytes + self._n_bytes(index) <= self._fleet.max_held_bytes
            if index != first and not (is_held and index - first < n_ahead):
                return
            chosen = self._choose(index, workers)
            if chosen is None:
                return
            heapq.heappop(self._waiting)
            n_threads = chosen.worker.n_threads if chosen.is_alone else 1
            ticket = self._fleet.start(chosen.worker, self._task, self._weights[index], n_threads)
            self._running[ticket] = chosen
            self._n_held_bytes += self._n_bytes(index)

    def _choose(self, index: int, workers: Sequence[Worker]) -> _Running | None:
        """The worker with the largest part of its threads free that may begin a weight; None where none may."""
        best: tuple[float, _Running] | None = None
        for worker in workers:
            own = [r for r in self._running.values() if r.worker == worker]
            n_elements = self._task.n_elements(self._weights[index])
            # What a worker was lost with may have been too large for it, or it was another one's fault: alone it shows.
            shares = is_small(n_elements, self._largest, worker.n_threads) and not self._losses[index]
            has_room = not any(r.is_alone for r in own) and len(own) < worker.n_threads if shares else not own
            load = len(own) / worker.n_threads
            if has_room and (best is None or load < best[0]):
                best = load, _Running(index, worker, not shares)
        return None if best is None else best[1]

    def _end(self, ended: Ended) -> None:
        run = self._running.pop(ended.ticket)
        if ended.lost is not None:
            self._lose(run.index, ended.lost)
        elif ended.error is not None:
            self._errors[run.index] = ended.error
        else:
            self._done[run.index] = ended.ticket

    def _lose(self, index: int, reason: str) -> None:
        """Lets a weight be computed again."""
        self._n_held_bytes -= self._n_bytes(index)
        self._losses[index] += 1
        name = self._task.name(self._weights[index])
        if self._losses[index] >= MAX_LOSSES:
            raise InputError(
                f"{name}: {MAX_LOSSES} workers were lost while they worked on it, the last one so: {reason}. "
                "Is there memory for it (docs/converter.md, On a cluster)?"
            )
        if len(self._notes) < _MAX_NOTES:
            self._notes.append(f"{name}: was computed again, because a worker was lost: {reason}")
        heapq.heappush(self._waiting, index)

    def _n_bytes(self, index: int) -> int:
        return self._task.n_result_bytes(self._weights[index])
