// sign-runs.h: where the signs of tiles lie in memory, in the order in which the kernel for one row of q and AVX2 reads them.
#pragma once

#include "kernels.h"
#include "prefetch.h"
#include "transposed-signs.h"

namespace { // Methods of classes would be weak symbols outside of it.

// Bytes that lie together. These are integers, because they may lie behind the end of the data, where no pointer may point.
struct sign_run {
    uintptr_t begin, end;
};

// The tiles are read one after the other in each segment of the columns, blocks of rows one after the other. Behind the last one come some
// bytes of the rows that follow the first tile in its matrix: the next call is taken to begin with them.
class sign_runs {
public:
    // Begins so many bytes behind the first one as requests go ahead.
    sign_runs(const struct dqrelo_sign_tile * tiles, int n_tiles, int64_t n_columns, int64_t segment_columns) :
        tiles(tiles), n_tiles(n_tiles), row_bytes(n_columns / 8), segment_bytes(segment_columns / 8), behind(tiles[0]) {
        behind.sign += behind.n_i * row_bytes;
        behind.row += behind.n_i;
        behind.n_i = (int) (behind.n_rows - behind.row);
        // A block of rows that are not transposed is read in steps of a line of each.
        ahead = tiles[0].transposed ? (int64_t) prefetch_bytes(dqrelo_asks_cache_1 ? DQRELO_CACHE_1 : DQRELO_CACHE_2)
                                    : DQRELO_BLOCK_ROWS * min_i64(segment_bytes, row_bytes);
        left  = ahead;
    }

    int64_t bytes_ahead() const { return ahead; }

    // Returns the next run; an empty one where there is none.
    sign_run next() {
        while (k <= n_tiles) {
            const struct dqrelo_sign_tile & tile = k < n_tiles ? tiles[k] : behind;
            if (i < tile.n_i) {
                const sign_run run = run_of(tile);
                return k < n_tiles ? run : last_of(run);
            }
            i = 0;
            k++;
            if (k == n_tiles) {
                const bool is_last = b0 + segment_bytes >= row_bytes;
                b0                 = is_last ? 0 : b0 + segment_bytes;
                k                  = is_last ? k : 0;
            }
        }
        return {};
    }

private:
    const struct dqrelo_sign_tile * tiles;
    int                             n_tiles;
    int64_t                         row_bytes, segment_bytes;
    struct dqrelo_sign_tile         behind;
    int64_t                         ahead, left; // `left` of what is behind the tiles
    int64_t                         b0 = 0;      // first byte of the segment in a row
    int                             k  = 0;      // tile
    int64_t                         i  = 0;      // row of the tile
    int64_t                         u  = 0;      // byte of the segment, where a block is read unit by unit

    static sign_run bytes_at(const uint8_t * sign, int64_t offset, int64_t n) {
        const uintptr_t begin = (uintptr_t) sign + (uintptr_t) offset;
        return { begin, begin + (uintptr_t) n };
    }

    sign_run run_of(const struct dqrelo_sign_tile & tile) {
        const int64_t n = min_i64(segment_bytes, row_bytes - b0);
        if (!tile.transposed || tile.n_i - i < DQRELO_GROUP_ROWS) {
            const int64_t first = i, n_rows = n < row_bytes ? 1 : tile.n_i - i;
            i += n_rows;
            return bytes_at(tile.sign, first * row_bytes + b0, n_rows < 2 ? n : n_rows * row_bytes);
        }
        const int64_t row     = tile.row + i;
        const int64_t n_block = dqrelo_block_rows(row, tile.n_rows);
        const int64_t n_left  = n_block - row % DQRELO_BLOCK_ROWS; // of the block
        const int64_t n_rows  = min_i64(n_left, (tile.n_i - i) / DQRELO_GROUP_ROWS * DQRELO_GROUP_ROWS);
        const int64_t n_bytes = n_rows < n_block ? min_i64(n - u, DQRELO_UNIT_BYTES) : n;
        const int64_t chunk   = (b0 + u) / DQRELO_CHUNK_BYTES;
        u                     = u + n_bytes < n ? u + n_bytes : 0;
        i += u == 0 ? n_rows : 0;
        return bytes_at(tile.sign - tile.row * row_bytes, dqrelo_chunk_offset(row, tile.n_rows, row_bytes, chunk), n_rows * n_bytes);
    }

    sign_run last_of(sign_run run) {
        run.end = run.begin + (uintptr_t) min_i64((int64_t) (run.end - run.begin), left);
        left -= (int64_t) (run.end - run.begin);
        k += left == 0 ? 1 : 0;
        return run;
    }
};

} // namespace
