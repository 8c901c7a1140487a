// tile-products.h: the products of a tile of fold.h with all rows of a group. The files that include it are linked beside those of
// instruction sets, so what is here is static.
#pragma once

#include "entry.h"
#include "fold.h"

// Rows that are multiplied with a tile before the next ones: with the tile they fit into a cache of the second level.
static constexpr int DQRELO_TILE_ROWS = 48;

// Multiplies the tile's n_i rows of n columns with all rows of the group: in(t) has the columns of row t, out(t) is what its products go
// to, or are added to.
template <typename I, typename O>
static void dqrelo_multiply_tile(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, const float * tile, int n_i,
                                 int64_t n, bool add, I && in, O && out) {
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += DQRELO_TILE_ROWS) {
        const int     n_t = (int) min_i64(DQRELO_TILE_ROWS, g->n_rows - t0);
        const float * rows[DQRELO_TILE_ROWS];
        float *       products[DQRELO_TILE_ROWS];
        for (int t = 0; t < n_t; t++) {
            rows[t]     = in(t0 + t);
            products[t] = out(t0 + t);
        }
        kernels->products(tile, DQRELO_FOLD_STRIDE, n_i, rows, n_t, n, products, add);
    }
}
