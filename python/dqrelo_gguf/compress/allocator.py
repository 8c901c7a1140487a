"""Keeps memory that was freed from staying with the process.

glibc has a heap for each thread and raises, up to 32 MiB, the size from which an array is mapped by itself every time
one is freed. Arrays below that size lie in the heaps, where one small array that is still in use holds all the freed
ones around it. How much stays depends on which thread frees what first: a conversion whose largest weight has 32 MiB
took between 105 and 151 MiB of its own, with AVX2 and AVX-512 alike. With one heap, and arrays mapped by themselves from
MAPPED_BYTES on, the same conversion takes 95 to 101 MiB (AMD EPYC Zen 4, two threads, 6 runs of each). A thread that was
there before keeps the heap that it has, and lends it to others. What MKL keeps for each thread is not in the heap: on an Intel Xeon the
same conversion takes 120 to 145 MiB with it, and 97 to 102 MiB with MKL_DISABLE_FAST_MM=1, which makes it slower (docs/converter.md).
"""

from __future__ import annotations

import ctypes

# Smaller arrays stay in the heap, where they are quick to make: a block's temporaries (blocks.py).
MAPPED_BYTES = 2 << 20
# So much that is free stays at the end of the heap. Without, the temporaries of one step are given back, and those of the next are new
# pages, which the system clears first: coding a block then takes three to seven times as long.
KEPT_BYTES = 8 << 20

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def bound_freed_memory() -> None:
    """Sets the C library's allocator for the rest of the process. Does nothing where it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
