// tile-products.h: the products of a tile of fold.h with all rows of a group. The files that include it are linked beside those of
// instruction sets, so what is here is static.
#pragma once

#include "entry.h"
#include "fold.h"

// Rows that are multiplied with a tile in one call.
static constexpr int DQRELO_TILE_ROWS = 192;

// What a tile is multiplied with: FOLD_COLUMNS columns of a row at most, in the tile's form.
struct dqrelo_row_piece {
    const float *   f32;
    const int16_t * i16;
    float           step; // of i16
};

// Columns j0, j0 + 1, ... of a row of x.
static inline struct dqrelo_row_piece dqrelo_x_piece(const struct dqrelo_row * row, int64_t j0) {
    return row->x_i16 ? dqrelo_row_piece{ row->x + j0, row->x_i16 + j0, row->x_step[j0 / DQRELO_FOLD_COLUMNS] }
                      : dqrelo_row_piece{ row->x + j0, nullptr, 0.0f };
}

// Rows are written in F32. Where products are those of integers, each row becomes them, in its place, when it is complete:
//
//   F32    | columns 0 .. FOLD_COLUMNS - 1            |
//   I16    | columns 0 .. FOLD_COLUMNS - 1 |  unused  |
namespace { // Methods of classes would be weak symbols outside of it.

struct dqrelo_tile {
    const struct dqrelo_kernels * kernels;
    float *                       values; // [DQRELO_FOLD_TILE]
    bool                          is_i16;
    float                         step[DQRELO_FOLD_TILE_I]; // of rows in I16

    float * row(int64_t i) const { return values + i * DQRELO_FOLD_STRIDE; }

    // The row behind the last one, for what goes into the others.
    float * spare_row() const { return row(DQRELO_FOLD_TILE_I); }

    void complete(int i, int64_t n) {
        if (is_i16) {
            kernels->quantize_i16(row(i), n, row(i), step + i);
        }
    }

    // Multiplies n_i rows of n columns with all rows of the group: in(t) is a piece of row t, out(t) is what its products go to, or are
    // added to.
    template <typename I, typename O>
    void multiply(const struct dqrelo_group * g, int n_i, int64_t n, bool add, I && in, O && out) const {
        for (int64_t t0 = 0; t0 < g->n_rows; t0 += DQRELO_TILE_ROWS) {
            const int       n_t = (int) min_i64(DQRELO_TILE_ROWS, g->n_rows - t0);
            const float *   f32[DQRELO_TILE_ROWS];
            const int16_t * i16[DQRELO_TILE_ROWS];
            float           row_step[DQRELO_TILE_ROWS];
            float *         products[DQRELO_TILE_ROWS];
            for (int t = 0; t < n_t; t++) {
                const struct dqrelo_row_piece piece = in(t0 + t);
                f32[t]                              = piece.f32;
                i16[t]                              = piece.i16;
                row_step[t]                         = piece.step;
                products[t]                         = out(t0 + t);
            }
            if (is_i16) {
                kernels->products_i16((const int16_t *) values, 2 * DQRELO_FOLD_STRIDE, step, n_i, i16, row_step, n_t, n, products, add);
            } else {
                kernels->tile_products(values, DQRELO_FOLD_STRIDE, n_i, f32, n_t, n, products, add);
            }
        }
    }
};

} // namespace
