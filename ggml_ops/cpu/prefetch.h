// prefetch.h: asks for what a kernel will read next.
//
// A tile of several rows reads short pieces of each, which the hardware's prefetchers do not follow. The tile is contiguous in memory, and
// so is what comes after it; so each step of a tile asks for as many bytes as it reads, in the order of memory, at least a tile ahead.
// Without this one row of a 2048 x 2048 delta is read at half of the speed of a plain read, with it at four fifths, and the base's F16
// product of 8 rows takes 1.2 to 1.7 times as long (docs/operator.md).
#pragma once

#include <stddef.h>
#include <stdint.h>

static constexpr size_t DQRELO_PREFETCH_BYTES = 8192; // Prefetches go at least so far ahead.

// Returns the address to begin with for a tile of tile_bytes. It is an integer, because it may lie behind the end of the data, where no
// pointer may point.
static inline uintptr_t prefetch_from(const void * tile, size_t tile_bytes) {
    return (uintptr_t) tile + (tile_bytes < DQRELO_PREFETCH_BYTES ? DQRELO_PREFETCH_BYTES : tile_bytes);
}

// Asks for the cache lines of BYTES from `next` on.
template <int BYTES>
static inline void prefetch_lines(uintptr_t next) {
#ifdef __GNUC__
#pragma GCC unroll 8
    for (int k = 0; k < BYTES; k += 64) {
        __builtin_prefetch((const void *) (next + (uintptr_t) k));
    }
#else
    (void) next;
#endif
}
