"""Weights that are worked on at the same time.

Much of a weight's work runs on one core: the eigenvectors of LAPACK, reading, packing. So small weights take a thread each; a
large one takes all threads, and nothing else runs beside it:

    thread 1   | q     | o     | down  .... |
    thread 2   | k | v | gate  ...  | up .. | the embedding ......

Small are weights of which as many as there are threads are together no larger than the largest one, so memory stays what that
one needs. Where there are fewer weights than threads, each has all threads. Another device than the CPU has one lane, because its
memory holds no more than one large weight for sure. What is computed does not depend on the number of threads (compress/blocks.py),
and results come in order.

These are the lanes of this process. A cluster's (cluster/lanes.py) have the same face, and as many threads on each node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from dqrelo_gguf.compress.blocks import CPU, Blocks
from dqrelo_gguf.convert.encode import Inputs
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.sources import Models, Sources
from dqrelo_gguf.convert.tasks import Task

# Weights that have begun or wait for a lane, for each lane: a slow one must not leave the others without work while its result is
# waited for. Those that are done are small.
AHEAD = 4

W = TypeVar("W")
R = TypeVar("R")


class Lanes(Protocol):
    """Where the passes of a conversion are computed.

    Attributes:
        n_threads: of all that compute.
        notes: what the report is to say of them.
    """

    n_threads: int
    notes: list[str]

    def each(self, task: Task[W, R], weights: Sequence[W]) -> Iterator[tuple[W, R]]:
        """Each weight with its result, in order.

        Raises:
            DqreloError: a weight cannot be converted, or nobody is left who could.
        """

    def use(self, inputs: Inputs) -> None:
        """Gives the tasks that follow what the weights multiply, which was measured meanwhile."""


# Opens the lanes of a conversion: of what it reads, of what was opened from it, by its options, beside the threads of this process.
OpenLanes = Callable[[Sources, Models, Options, Blocks], AbstractContextManager[Lanes]]


class LocalLanes:
    """The threads of this process.

    Args:
        models: what the tasks read.
        blocks: all threads.
        largest: elements of the conversion's largest weight, where `each` is given some of the weights at a time.
    """

    def __init__(self, models: Models, blocks: Blocks, largest: int = 0) -> None:
        self.n_threads = blocks.n_threads
        self.notes: list[str] = []
        self._models, self._blocks, self._largest = models, blocks, largest

    def each(self, task: Task[W, R], weights: Sequence[W]) -> Iterator[tuple[W, R]]:
        """See `Lanes`."""
        models = self._models

        def work(weight: W, blocks: Blocks) -> R:
            return task.run(weight, models, blocks)

        return in_lanes(weights, task.n_elements, work, self._blocks, self._largest)

    def use(self, inputs: Inputs) -> None:
        """See `Lanes`."""
        self._models = replace(self._models, inputs=inputs)


@contextmanager
def local_lanes(sources: Sources, models: Models, options: Options, blocks: Blocks) -> Iterator[Lanes]:
    """The lanes of this process; see `OpenLanes`."""
    del sources, options
    yield LocalLanes(models, blocks)


def is_small(n_elements: int, largest: int, n_lanes: int) -> bool:
    """True for a weight of which one in each lane is together no larger than the largest one."""
    return n_elements * n_lanes <= largest


def in_lanes(
    weights: Sequence[W],
    n_elements: Callable[[W], int],
    work: Callable[[W, Blocks], R],
    blocks: Blocks,
    largest: int = 0,
) -> Iterator[tuple[W, R]]:
    """Each weight with its result, in order.

    Args:
        weights: what to work on.
        n_elements: the size of one.
        work: what to do; it is given the threads that it may use.
        blocks: all threads.
        largest: the size of the largest weight there is, if that is none of these.
    """
    n_lanes = blocks.n_threads
    largest = max([largest, *map(n_elements, weights)])
    if blocks.device != CPU:
        for weight in weights:
            yield weight, work(weight, blocks)
        return
    alone = Blocks(1)
    begun: deque[tuple[W, Future[R]]] = deque()
    with ThreadPoolExecutor(n_lanes) as pool:
        try:
            for weight in weights:
                shares = len(weights) >= n_lanes and is_small(n_elements(weight), largest, n_lanes)
                while len(begun) >= (AHEAD * n_lanes if shares else 1):
                    first, result = begun.popleft()
                    yield first, result.result()
                if shares:
                    begun.append((weight, pool.submit(work, weight, alone)))
                else:
                    yield weight, work(weight, blocks)
            while begun:
                first, result = begun.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
