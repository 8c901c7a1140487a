// prefetch.h: asks for what a kernel will read next.
//
// A tile of several rows reads short pieces of each, which the hardware's prefetchers do not follow. The tile is contiguous in memory, and
// so is what comes after it; so each step of a tile asks for as many bytes as it reads, in the order of memory, at least a tile ahead.
// Without this one row of a 2048 x 2048 delta is read at half of the speed of a plain read, with it at four fifths, and the base's F16
// product of 8 rows takes 1.2 to 1.7 times as long (docs/operator.md).
#pragma once

#include "kernels.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#define DQRELO_HIDDEN __attribute__((visibility("hidden"))) // Within one library no table of addresses is needed to read it.
#else
#define DQRELO_HIDDEN
#endif

// A request to the first cache takes one of its few places for misses until memory has answered, so where a kernel is as fast as memory,
// requests go to the second cache: on Zen 4 one thread then reads F16 factors at 19 to 25 GB/s instead of 14 (a plain read: 20), and the
// base's F16 product of 8 rows of 4096 x 4096 takes 3.0 instead of 4.3 ms. Where instructions are the limit the first cache is better. On
// Zen 5 it is always better: requests to the second one come late or not at all, and signs take 1.2 times as long (docs/operator.md).
enum dqrelo_cache { DQRELO_CACHE_1 = 3, DQRELO_CACHE_2 = 2 }; // as __builtin_prefetch names them

// Prefetches go at least so far ahead.
static inline constexpr size_t prefetch_bytes(enum dqrelo_cache cache) {
    return cache == DQRELO_CACHE_1 ? 8192 : 16384;
}

// Returns the address to begin with for a tile of tile_bytes. It is an integer, because it may lie behind the end of the data, where no
// pointer may point.
static inline uintptr_t prefetch_from(const void * tile, size_t tile_bytes, enum dqrelo_cache cache = DQRELO_CACHE_2) {
    return (uintptr_t) tile + (tile_bytes < prefetch_bytes(cache) ? prefetch_bytes(cache) : tile_bytes);
}

// Whether requests to the second cache go to the first one instead: on Zen 5, or as the environment variable DQRELO_PREFETCH says, 1 or 2.
extern DQRELO_HIDDEN const bool dqrelo_asks_cache_1;

template <int BYTES, enum dqrelo_cache CACHE>
static inline void prefetch_into(uintptr_t next) {
#ifdef __GNUC__
#pragma GCC unroll 8
    for (int k = 0; k < BYTES; k += 64) {
        __builtin_prefetch((const void *) (next + (uintptr_t) k), 0, CACHE);
    }
#else
    (void) next;
#endif
}

// Asks for the cache lines of BYTES from `next` on.
template <int BYTES, enum dqrelo_cache CACHE = DQRELO_CACHE_2>
static inline void prefetch_lines(uintptr_t next) {
    if (CACHE == DQRELO_CACHE_1 || dqrelo_asks_cache_1) {
        prefetch_into<BYTES, DQRELO_CACHE_1>(next);
    } else {
        prefetch_into<BYTES, DQRELO_CACHE_2>(next);
    }
}

// Asks for the next BYTES of what will be read afterwards, if any are left.
template <int BYTES = 64>
static inline void prefetch_ahead(struct dqrelo_ahead & ahead) {
    if (ahead.next < ahead.end) {
        prefetch_lines<BYTES, DQRELO_CACHE_2>(ahead.next);
        ahead.next += BYTES;
    }
}
