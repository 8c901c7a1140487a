"""Weights that are worked on at the same time.

Much of a weight's work runs on one core: the eigenvectors of LAPACK, reading, packing. So small weights take a thread each; a
large one takes all threads, and nothing else runs beside it:

    thread 1   | q     | o     | down  .... |
    thread 2   | k | v | gate  ...  | up .. | the embedding ......

Small are weights of which as many as there are threads are together no larger than the largest one, so memory stays what that
one needs. Another device than the CPU has one lane, because its memory holds no more than one large weight for sure. What is computed
does not depend on the number of threads (compress/blocks.py), and results come in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dqrelo_gguf.compress.blocks import CPU, Blocks

# Weights that have begun or wait for a lane, for each lane: a slow one must not leave the others without work while its result is
# waited for. Those that are done are small.
AHEAD = 4

W = TypeVar("W")
R = TypeVar("R")


def in_lanes(
    weights: Sequence[W], n_elements: Callable[[W], int], work: Callable[[W, Blocks], R], blocks: Blocks
) -> Iterator[tuple[W, R]]:
    """Each weight with its result, in order.

    Args:
        weights: what to work on.
        n_elements: the size of one.
        work: what to do; it is given the threads that it may use.
        blocks: all threads.
    """
    n_lanes = blocks.n_threads
    largest = max(map(n_elements, weights), default=0)
    if blocks.device != CPU:
        for weight in weights:
            yield weight, work(weight, blocks)
        return
    alone = Blocks(1)
    begun: deque[tuple[W, Future[R]]] = deque()
    with ThreadPoolExecutor(n_lanes) as pool:
        try:
            for weight in weights:
                is_small = n_elements(weight) * n_lanes <= largest
                while len(begun) >= (AHEAD * n_lanes if is_small else 1):
                    first, result = begun.popleft()
                    yield first, result.result()
                if is_small:
                    begun.append((weight, pool.submit(work, weight, alone)))
                else:
                    yield weight, work(weight, blocks)
            while begun:
                first, result = begun.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
