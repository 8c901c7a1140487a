// sign-requests.h: asks for the signs that a kernel will read next.
#pragma once

#include "kernels.h"
#include "prefetch.h"

namespace { // Methods of classes would be weak symbols outside of it.

// The signs that memory is asked for, in the order in which they are read: those of all tiles, and then what follows the first one. These
// are integers, because they may lie behind the end of the data, where no pointer may point.
class sign_requests {
public:
    sign_requests(const struct dqrelo_sign_tile * tiles, int n_tiles, int64_t row_bytes) :
        tile(tiles), last(tiles + n_tiles - 1), row_bytes(row_bytes), behind(end_of(tiles)) {
        begin_tile(tiles);
    }

    // Passes over bytes that have been asked for.
    void skip(int64_t n_bytes) {
        for (; n_bytes >= left; begin_next()) {
            n_bytes -= left;
        }
        next += (uintptr_t) n_bytes;
        left -= n_bytes;
    }

    template <enum dqrelo_cache CACHE>
    void ask() {
        prefetch_lines<64, CACHE>(next);
        next += 64;
        left -= 64;
        if (left <= 0) {
            begin_next();
        }
    }

private:
    const struct dqrelo_sign_tile *tile, *last;
    int64_t                        row_bytes;
    uintptr_t                      behind;
    uintptr_t                      next = 0;
    int64_t                        left = 0; // of the tile

    uintptr_t end_of(const struct dqrelo_sign_tile * t) const { return (uintptr_t) t->sign + (uintptr_t) (t->n_i * row_bytes); }

    void begin_tile(const struct dqrelo_sign_tile * t) {
        tile = t;
        next = (uintptr_t) t->sign;
        left = t->n_i * row_bytes;
    }

    void begin_next() {
        if (tile < last) {
            begin_tile(tile + 1);
        } else {
            next = behind;
            left = INT64_MAX;
        }
    }
};

} // namespace
