// sparse-tiles.cuh: products with sparse weights in the tiles of factor-tiles.cuh: entries are put into a tile of zeros in F32.
#pragma once

#include "factor-tiles.cuh"
#include "sparse.cuh"

// Where a thread that fills tiles from left to right is in its row.
struct sparse_cursor {
    int at   = 0; // the next entry
    int left = 0; // of lists: entries from there on in this block

    // Calls put(column - j0, value) with the entries in columns j0 to j0 + DEPTH - 1.
    template <typename F>
    __device__ __forceinline__ void fill(const sparse_row & row, int j0, F put) {
        static_assert(DEPTH == 32 && DQRELO_SPARSE_BLOCK % DEPTH == 0, "a piece is a word of a mask, and a part of one block");
        if (row.e->mask) {
            for (uint32_t word = row.mask_word(j0 / 32); word; word &= word - 1) {
                put(__ffs((int) word) - 1, row.value(at++));
            }
            return;
        }
        const int begin = j0 % DQRELO_SPARSE_BLOCK;
        left            = begin == 0 ? row.counts()[j0 / DQRELO_SPARSE_BLOCK] : left;
        for (; left > 0 && row.e->column[at] < begin + DEPTH; left--) {
            put(row.e->column[at] - begin, row.value(at));
            at++;
        }
    }
};

// Adds rows i0, i0 + 1, ... of a matrix times b_row(r) to sum[n][c] for the tile's features and the rows r of `range`. Each of the first 64
// threads fills in a feature.
template <typename B>
static __device__ __forceinline__ void add_sparse_tile(tile_memory & memory, const matrix_ref & matrix, int i0, const tile_range & range,
                                                       B b_row, float sum[N_TILES][4]) {
    const int        n       = (int) matrix.e->n_in;
    const int        feature = (int) threadIdx.x;
    const bool       fills   = feature < TILE_OUTPUTS && i0 + feature < matrix.e->n_out;
    const sparse_row row(matrix, fills ? i0 + feature : i0);
    sparse_cursor    cursor;
    cursor.at = row.first();
    for (int j0 = 0; j0 < n; j0 += DEPTH) {
        __syncthreads();
        for (int k = (int) threadIdx.x; k < DEPTH * TILE_OUTPUTS; k += N_THREADS) {
            memory.floats.a[k / TILE_OUTPUTS][k % TILE_OUTPUTS] = 0.0f;
        }
        load_float_rows(memory, n, range, b_row, j0);
        __syncthreads();
        if (fills) {
            cursor.fill(row, j0, [&](int column, float value) { memory.floats.a[column][feature] = value; });
        }
        __syncthreads();
        multiply_floats(memory, sum);
    }
}
