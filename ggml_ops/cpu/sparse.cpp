#include "sparse.h"

#include "entry.h"
#include "factor-types.h"
#include "stack.h"

#include <string.h>

// Rows of x that are multiplied with the entries themselves. For more of them it is faster to write D_hat out once.
static constexpr int FEW_ROWS = 2;

// A piece of a row: columns j0 to j0 + n - 1, of which j0 is a multiple of DQRELO_SPARSE_BLOCK and n at most DQRELO_SPARSE_COLUMNS.
struct sparse_piece {
    int64_t         n;
    int64_t         n_entries;
    const uint8_t * bits;   // of its columns, or NULL
    const uint8_t * count;  // of its blocks, or NULL
    const uint8_t * column; // of its entries, or NULL
};

static const uint8_t * counts_of(const struct dqrelo_entry * e, int64_t i, int64_t j0) {
    return e->count + i * dqrelo_sparse_blocks(e->n_in) + j0 / DQRELO_SPARSE_BLOCK;
}

// `at` is the number of the piece's first entry.
static struct sparse_piece piece_of(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                                    int64_t at) {
    struct sparse_piece piece = { n, 0, nullptr, nullptr, nullptr };
    if (e->mask) {
        piece.bits      = e->mask + i * (e->n_in / 8) + j0 / 8;
        piece.n_entries = kernels->count_bits(piece.bits, n);
        return piece;
    }
    piece.count  = counts_of(e, i, j0);
    piece.column = e->column + at;
    for (int64_t b = 0; b < dqrelo_sparse_blocks(n); b++) {
        piece.n_entries += piece.count[b];
    }
    return piece;
}

// Sets values[k] to entry at + k, without the row's scale.
static void entry_values(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t at, int64_t n, float * values) {
    const int64_t n_value = e->type_entries == GGML_TYPE_I8 ? 1 : 2;
    kernels->to_float((enum ggml_type) e->type_entries, (const uint8_t *) e->entries + at * n_value, n, values);
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

// Puts values at the columns that lists say.
static void put_lists(const struct sparse_piece * piece, const float * values, float * out) {
    const uint8_t * column = piece->column;
    memset(out, 0, (size_t) piece->n * sizeof(float));
    for (int64_t b = 0; b < dqrelo_sparse_blocks(piece->n); b++, out += DQRELO_SPARSE_BLOCK) {
        const int n = piece->count[b]; // Bytes may alias anything, so the compiler would read it again after each store.
        for (int k = 0; k < n; k++) {
            out[column[k]] = values[k];
        }
        column += n;
        values += n;
    }
}

// Sets out[j] to the piece's values, zeros between them, without the row's scale, and moves *at, the number of the first entry there,
// behind them. out has room for whole blocks, so that no column, whatever it says, lies outside.
static void expand_piece(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                         int64_t * at, float * out) {
    float                     values[DQRELO_SPARSE_COLUMNS + DQRELO_EXPAND_BEHIND];
    const struct sparse_piece piece = piece_of(kernels, e, i, j0, n, *at);
    entry_values(kernels, e, *at, piece.n_entries, values);
    *at += piece.n_entries;
    if (piece.bits) {
        kernels->expand(values, piece.bits, n, out);
    } else {
        put_lists(&piece, values, out);
    }
}

void dqrelo_sparse_columns(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                           float * out) {
    float         piece[DQRELO_SPARSE_COLUMNS];
    const int64_t end   = j0 + n;
    const float   scale = e->escale ? e->escale[i] : 1.0f;
    int64_t       j     = j0 / DQRELO_SPARSE_BLOCK * DQRELO_SPARSE_BLOCK;
    int64_t       at    = first_entry(kernels, e, i, j);
    for (; j < end; j += DQRELO_SPARSE_COLUMNS) {
        // A piece is made of whole blocks, of which only the row's last one may be shorter.
        const int64_t n_piece = min_i64(min_i64(dqrelo_sparse_blocks(end - j) * DQRELO_SPARSE_BLOCK, e->n_in - j), DQRELO_SPARSE_COLUMNS);
        expand_piece(kernels, e, i, j, n_piece, &at, piece);
        for (int64_t k = j < j0 ? j0 - j : 0; k < min_i64(n_piece, end - j); k++) {
            out[j + k - j0] = scale * piece[k];
        }
    }
}

// The same products from the entries themselves, for rows i to i + n_rows - 1, of which at[r] is the next entry. The tile holds their
// values.
static void multiply_entries(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int n_rows, int64_t j0,
                             int64_t n, int64_t * at, const float * const * x, int n_t, float * const * sums, float * tile) {
    const float *   values[DQRELO_SPARSE_TILE_I];
    const uint8_t * bits[DQRELO_SPARSE_TILE_I];
    const uint8_t * count[DQRELO_SPARSE_TILE_I];
    const uint8_t * column[DQRELO_SPARSE_TILE_I];
    for (int r = 0; r < n_rows; r++) {
        const struct sparse_piece piece = piece_of(kernels, e, i + r, j0, n, at[r]);
        entry_values(kernels, e, at[r], piece.n_entries, tile + r * DQRELO_SPARSE_STRIDE);
        values[r] = tile + r * DQRELO_SPARSE_STRIDE;
        bits[r]   = piece.bits;
        count[r]  = piece.count;
        column[r] = piece.column;
        at[r] += piece.n_entries;
    }
    for (int t = 0; t < n_t; t++) {
        if (e->mask) {
            kernels->mask_products(values, bits, n_rows, x[t], n, sums[t], j0 > 0);
        } else {
            kernels->list_products(values, column, count, n_rows, x[t], n, sums[t], j0 > 0);
        }
    }
}

// Sets sums[t][r] to row i + r of D_hat times x[t], for n_rows <= DQRELO_SPARSE_TILE_I rows.
static void dots_of_rows(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int n_rows,
                         const float * const * x, int n_t, float * const * sums, float * tile) {
    int64_t at[DQRELO_SPARSE_TILE_I];
    for (int r = 0; r < n_rows; r++) {
        at[r] = e->start[i + r];
    }
    for (int64_t j0 = 0; j0 < e->n_in; j0 += DQRELO_SPARSE_COLUMNS) {
        const int64_t n = min_i64(DQRELO_SPARSE_COLUMNS, e->n_in - j0);
        const float * x_piece[DQRELO_TILE_T];
        for (int t = 0; t < n_t; t++) {
            x_piece[t] = x[t] + j0;
        }
        if (n_t <= FEW_ROWS) {
            multiply_entries(kernels, e, i, n_rows, j0, n, at, x_piece, n_t, sums, tile);
            continue;
        }
        for (int r = 0; r < n_rows; r++) {
            expand_piece(kernels, e, i + r, j0, n, &at[r], tile + r * DQRELO_SPARSE_STRIDE);
        }
        kernels->products(tile, DQRELO_SPARSE_STRIDE, n_rows, x_piece, n_t, n, sums, j0 > 0);
    }
    for (int t = 0; e->escale && t < n_t; t++) {
        for (int r = 0; r < n_rows; r++) {
            sums[t][r] *= e->escale[i + r];
        }
    }
}

void dqrelo_sparse_dots(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i0, int n_i, const float * const * x,
                        int n_t, float * out, int64_t ld, float * tile) {
    for (int i = 0; i < n_i; i += DQRELO_SPARSE_TILE_I) {
        float * sums[DQRELO_TILE_T];
        for (int t = 0; t < n_t; t++) {
            sums[t] = out + t * ld + i;
        }
        dots_of_rows(kernels, e, i0 + i, (int) min_i64(DQRELO_SPARSE_TILE_I, n_i - i), x, n_t, sums, tile);
    }
}
