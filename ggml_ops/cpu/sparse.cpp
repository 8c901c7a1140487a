#include "sparse.h"

#include "entry.h"
#include "factor-types.h"
#include "stack.h"

#include <string.h>

// Sets values[k] to entry at + k, of row i, for n <= DQRELO_SPARSE_COLUMNS entries.
static void entry_values(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t at, int64_t n,
                         float * values) {
    if (e->type_entries != GGML_TYPE_I8) {
        kernels->to_float((enum ggml_type) e->type_entries, (const uint16_t *) e->entries + at, n, values);
        return;
    }
    uint16_t        f16[DQRELO_SPARSE_COLUMNS];
    const uint8_t * upper = (const uint8_t *) e->entries + at;
    for (int64_t k = 0; k < n; k++) {
        f16[k] = (uint16_t) (upper[k] << 8);
    }
    kernels->to_float(GGML_TYPE_F16, f16, n, values);
    const float scale = e->escale[i];
    for (int64_t k = 0; k < n; k++) {
        values[k] *= scale;
    }
}

static const uint8_t * counts_of(const struct dqrelo_entry * e, int64_t i, int64_t j0) {
    return e->count + i * dqrelo_sparse_blocks(e->n_in) + j0 / DQRELO_SPARSE_BLOCK;
}

// Returns the number of the first entry of row i that lies in column j0, a multiple of DQRELO_SPARSE_BLOCK, or behind it.
static int64_t first_entry(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0) {
    int64_t at = e->start[i];
    if (e->mask) {
        return at + kernels->count_bits(e->mask + i * (e->n_in / 8), j0);
    }
    for (const uint8_t * count = counts_of(e, i, 0); count < counts_of(e, i, j0); count++) {
        at += *count;
    }
    return at;
}

// Puts the n entries from `at` on, whose values are given, at the columns that the lists of a piece say.
static void put_lists(const struct dqrelo_entry * e, const uint8_t * count, int64_t at, int64_t n_columns, const float * values,
                      float * out) {
    const uint8_t * column = e->column + at;
    memset(out, 0, (size_t) n_columns * sizeof(float));
    for (int64_t j = 0; j < n_columns; j += DQRELO_SPARSE_BLOCK) {
        const int n = *count++; // Bytes may alias anything, so the compiler would read it again after each store.
        int       k = 0;
        for (; k + 4 <= n; k += 4) {
            const uint32_t c0 = column[k], c1 = column[k + 1], c2 = column[k + 2], c3 = column[k + 3];
            const float    v0 = values[k], v1 = values[k + 1], v2 = values[k + 2], v3 = values[k + 3];
            out[c0]           = v0;
            out[c1]           = v1;
            out[c2]           = v2;
            out[c3]           = v3;
        }
        for (; k < n; k++) {
            out[column[k]] = values[k];
        }
        column += n;
        values += n;
        out += DQRELO_SPARSE_BLOCK;
    }
}

// Sets out[j] to D_hat(i, j0 + j) for n <= DQRELO_SPARSE_COLUMNS columns, j0 being a multiple of DQRELO_SPARSE_BLOCK, and moves *at, the
// number of the first entry there, behind them. out has room for whole blocks, so that no column, whatever it says, lies outside.
static void expand_piece(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                         int64_t * at, float * out) {
    float           values[DQRELO_SPARSE_COLUMNS + DQRELO_EXPAND_BEHIND];
    const uint8_t * bits      = e->mask ? e->mask + i * (e->n_in / 8) + j0 / 8 : nullptr;
    const uint8_t * count     = e->mask ? nullptr : counts_of(e, i, j0);
    int64_t         n_entries = 0;
    if (bits) {
        n_entries = kernels->count_bits(bits, n);
    }
    for (int64_t j = 0; count && j < n; j += DQRELO_SPARSE_BLOCK) {
        n_entries += count[j / DQRELO_SPARSE_BLOCK];
    }
    entry_values(kernels, e, i, *at, n_entries, values);
    if (bits) {
        kernels->expand(values, bits, n, out);
    } else {
        put_lists(e, count, *at, n, values, out);
    }
    *at += n_entries;
}

void dqrelo_sparse_columns(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                           float * out) {
    float         piece[DQRELO_SPARSE_COLUMNS];
    const int64_t end = j0 + n;
    int64_t       j   = j0 / DQRELO_SPARSE_BLOCK * DQRELO_SPARSE_BLOCK;
    int64_t       at  = first_entry(kernels, e, i, j);
    for (; j < end; j += DQRELO_SPARSE_COLUMNS) {
        // A piece is made of whole blocks, of which only the row's last one may be shorter.
        const int64_t n_blocks = (end - j + DQRELO_SPARSE_BLOCK - 1) / DQRELO_SPARSE_BLOCK;
        const int64_t n_piece  = min_i64(min_i64(n_blocks * DQRELO_SPARSE_BLOCK, e->n_in - j), DQRELO_SPARSE_COLUMNS);
        expand_piece(kernels, e, i, j, n_piece, &at, piece);
        const int64_t skipped = j < j0 ? j0 - j : 0;
        memcpy(out + (j + skipped - j0), piece + skipped, (size_t) (min_i64(n_piece, end - j) - skipped) * sizeof(float));
    }
}

void dqrelo_sparse_dots(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i0, int n_i, const float * const * x,
                        int n_t, float * out, int64_t ld, float * tile) {
    for (int i = 0; i < n_i; i += DQRELO_SPARSE_TILE_I) {
        const int n_rows = (int) min_i64(DQRELO_SPARSE_TILE_I, n_i - i);
        int64_t   at[DQRELO_SPARSE_TILE_I];
        for (int r = 0; r < n_rows; r++) {
            at[r] = e->start[i0 + i + r];
        }
        for (int64_t j0 = 0; j0 < e->n_in; j0 += DQRELO_SPARSE_COLUMNS) {
            const int64_t n = min_i64(DQRELO_SPARSE_COLUMNS, e->n_in - j0);
            const float * x_piece[DQRELO_TILE_T];
            float *       sums[DQRELO_TILE_T];
            for (int t = 0; t < n_t; t++) {
                x_piece[t] = x[t] + j0;
                sums[t]    = out + t * ld + i;
            }
            for (int r = 0; r < n_rows; r++) {
                expand_piece(kernels, e, i0 + i + r, j0, n, &at[r], tile + r * DQRELO_SPARSE_STRIDE);
            }
            kernels->products(tile, DQRELO_SPARSE_STRIDE, n_rows, x_piece, n_t, n, sums, j0 > 0);
        }
    }
}
