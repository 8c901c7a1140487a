"""Block-parallel linear algebra whose results do not depend on the number of threads.

A BLAS splits its sums by the number of threads, so the last bits of a result change with the machine's load settings.
Here every product is cut into blocks of a fixed size, each block is computed by one thread, and partial sums are added
in block order. The same input then gives the same bits with 1 or 64 threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.allocator import bound_freed_memory
from dqrelo_gguf.compress.reproducible import ask_for_reproducible_sums

ask_for_reproducible_sums()

T = TypeVar("T")

CPU: Final = torch.device("cpu")

# Rows a block of a product has: large enough for the BLAS to reach its speed, small enough to feed many threads.
BLOCK_ROWS = 256
# Rows whose products are added up in float32 before they are added to a sum in float64.
GRAM_ROWS = 8 * BLOCK_ROWS
# Elements a block of an element-wise pass has: 1 MiB of float32, so that a block's temporaries stay in the cache.
BLOCK_ELEMENTS = 1 << 18


class Blocks:
    """A pool of threads that works on fixed blocks of a matrix.

    Args:
        n_threads: how many threads work; the results do not depend on it.
        device: where the matrices lie. Every function here and in the modules that use it makes its tensors where its input lies.
    """

    def __init__(self, n_threads: int, device: torch.device = CPU) -> None:
        self.n_threads = n_threads
        self.device = device
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def place(self, array: npt.NDArray[np.float32]) -> torch.Tensor:
        """An array on the device; on the CPU it shares the memory."""
        return torch.from_numpy(array).to(self.device)

    def run(self, fn: Callable[[slice], T], slices: list[slice]) -> list[T]:
        """The results of `fn` on each slice, in order. Results that are tensors belong into one that is there before (see `sum_rows`)."""
        if self._pool is None or len(slices) == 1:
            return [fn(s) for s in slices]
        return list(self._pool.map(fn, slices))

    def each(self, fn: Callable[[int, torch.Tensor, Blocks], T], matrices: npt.NDArray[np.float32]) -> list[T]:
        """The results of `fn` on each matrix of a stack, in order. It is given the number of the matrix, the matrix on the device, and threads.

        Much of the work on a small matrix runs on one core, so where there is a matrix for every thread each has one of its own. Fewer
        matrices come one after the other, with all threads; so do those on another device, whose memory may hold but one.

        Args:
            fn: what to do; from several threads.
            matrices: (n_mat, n_out, n_in) float32.
        """
        if self._pool is None or self.device != CPU or len(matrices) < self.n_threads:
            return [fn(e, self.place(matrix), self) for e, matrix in enumerate(matrices)]
        alone = Blocks(1)
        return list(self._pool.map(lambda e: fn(e, self.place(matrices[e]), alone), range(len(matrices))))

    def matmul(self, A: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        """A X for A (n, m), which may be a transposed view, and X (m, k); all float32. Returns (n, k)."""
        out = A.new_empty((A.shape[0], X.shape[1]))
        self.run(lambda s: torch.mm(A[s], X, out=out[s]), slices_of(A.shape[0], BLOCK_ROWS))
        return out

    def gram(self, B: torch.Tensor) -> torch.Tensor:
        """B^T B for B (n, k) float32, summed over blocks of rows in float64. Returns (k, k) float64.

        The upper half is computed, a strip of rows at a time, and copied to the lower one.
        """
        k = B.shape[1]
        total = B.new_zeros((k, k), dtype=torch.float64)
        strips = slices_of(k, BLOCK_ROWS)

        def upper(own: slice) -> None:
            for rows in slices_of(B.shape[0], GRAM_ROWS):
                total[own, own.start :] += B[rows, own].T @ B[rows, own.start :]

        def lower(own: slice) -> None:
            total[own.stop :, own] = total[own, own.stop :].T

        self.run(upper, strips)
        self.run(lower, strips)
        return total

    def sum_rows(self, fn: Callable[[slice], torch.Tensor], n_rows: int, n_cols: int) -> torch.Tensor:
        """The sum of `fn(rows)` over blocks of rows, added in order; `fn` returns a small float64 tensor.

        The parts are put into one tensor at once. If each stayed where it was made, it would lie in the space that a temporary of
        another thread has left, so that the next temporary does not fit there: the heap then grows by a block of the matrix for each.
        """
        first, *others = row_slices(n_rows, n_cols)
        part = fn(first)
        parts = part.new_empty((1 + len(others), *part.shape))
        parts[0] = part
        n_block = first.stop

        def step(rows: slice) -> None:
            parts[rows.start // n_block] = fn(rows)

        self.run(step, others)
        return parts.sum(dim=0)


def slices_of(n: int, step: int) -> list[slice]:
    """[0, n) cut into slices of `step`, the last one shorter."""
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def row_slices(n_rows: int, n_cols: int) -> list[slice]:
    """Blocks of whole rows with about BLOCK_ELEMENTS elements each."""
    return slices_of(n_rows, max(1, BLOCK_ELEMENTS // max(1, n_cols)))


def n_cores() -> int:
    """Cores that this process may use."""
    # macOS has no affinities.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_blocks(n_threads: int | None = None, device: torch.device = CPU) -> Iterator[Blocks]:
    """A `Blocks` with `n_threads` threads (default: the cores that this process may use), torch itself held to one.

    Torch's own threads would split the sums inside a block. The process's allocator is set, so that memory that was freed
    does not pile up.
    """
    bound_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    blocks = Blocks(n_threads or n_cores(), device)
    try:
        yield blocks
    finally:
        blocks.close()
        torch.set_num_threads(before)
