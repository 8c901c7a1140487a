#include "decoded-codes.h"

#include "factor-types.h"
#include "sign-rows.h"
#include "tile-products.h"

#include <string.h>

// Calls f(plane, rank, first code) for the planes that have rows of B from k on.
template <typename F>
static void for_each_plane(const struct dqrelo_entry * e, int64_t k, F && f) {
    int64_t code = 0;
    for (int p = 0; p < DQRELO_MAX_CODE_PLANES && k < e->plane_ranks[p]; p++) {
        f(p, e->plane_ranks[p], code);
        code += e->plane_ranks[p];
    }
}

//
// B
//

// Returns columns j0 to j0 + n - 1 of the rows of B, one a code.
static sign_rows rows_of_b(const struct dqrelo_entry * e, int64_t j0, int64_t n) {
    return { e->transposed != 0, e->vsign, e->n_codes, e->n_in / 8, j0 / 8, n / 8 };
}

// Sets a row of the tile to columns j0 to j0 + n - 1 of row k of B, times c.
static void decode_b(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t k, int64_t j0, int64_t n,
                     sign_rows * planes, float * out) {
    memset(out, 0, (size_t) n * sizeof(float));
    for_each_plane(e, k, [&](int p, int64_t, int64_t code) {
        const float scale = dqrelo_bf16_to_f32(((const uint16_t *) e->vscale)[code + k]);
        kernels->fold_signs(out, planes[p].row(code + k), scale, e->cscale ? e->cscale + j0 : nullptr, n);
    });
}

// Multiplies values k0 to k0 + n_k - 1 of each row with its request scale.
static void scale_rows(const struct dqrelo_group * g, int64_t k0, int n_k) {
    for (int64_t t = 0; t < g->n_rows; t++) {
        float * bx = g->bx + t * g->bx_stride + k0;
        for (int k = 0; k < n_k; k++) {
            bx[k] *= g->rows[t].s;
        }
    }
}

void dqrelo_decoded_codes(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t k0, int64_t k1, float * memory) {
    struct dqrelo_tile tile = { kernels, memory, g->bx_step != nullptr, {} };
    for (; k0 < k1; k0 += DQRELO_FOLD_TILE_I) {
        const int n_k = (int) min_i64(DQRELO_FOLD_TILE_I, k1 - k0);
        for (int64_t j0 = 0; j0 < g->e.n_in; j0 += DQRELO_FOLD_COLUMNS) {
            const int64_t n                              = min_i64(DQRELO_FOLD_COLUMNS, g->e.n_in - j0);
            const auto    b                              = [&] { return rows_of_b(&g->e, j0, n); };
            sign_rows     planes[DQRELO_MAX_CODE_PLANES] = { b(), b(), b(), b(), b(), b(), b(), b() };
            for (int k = 0; k < n_k; k++) {
                decode_b(kernels, &g->e, k0 + k, j0, n, planes, tile.row(k));
                tile.complete(k, n);
            }
            tile.multiply(
                g, n_k, n, j0 > 0, [&](int64_t t) { return dqrelo_x_piece(&g->rows[t], j0); },
                [&](int64_t t) { return g->bx + t * g->bx_stride + k0; });
        }
        scale_rows(g, k0, n_k);
    }
}

void dqrelo_decoded_quantize(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t) {
    if (!g->bx_step) {
        return;
    }
    const int64_t rank = g->e.plane_ranks[0];
    float *       bx   = g->bx + t * g->bx_stride;
    float *       step = g->bx_step + t * dqrelo_i16_pieces(g->bx_stride);
    for (int64_t k0 = 0; k0 < rank; k0 += DQRELO_FOLD_COLUMNS) {
        kernels->quantize_i16(bx + k0, min_i64(DQRELO_FOLD_COLUMNS, rank - k0), bx + k0, step + k0 / DQRELO_FOLD_COLUMNS);
    }
}

// Values k0, k0 + 1, ... of row t of what B gave.
static struct dqrelo_row_piece bx_piece(const struct dqrelo_group * g, int64_t t, int64_t k0) {
    const float * bx = g->bx + t * g->bx_stride + k0;
    if (!g->bx_step) {
        return { bx, nullptr, 0.0f };
    }
    return { bx, (const int16_t *) bx, g->bx_step[t * dqrelo_i16_pieces(g->bx_stride) + k0 / DQRELO_FOLD_COLUMNS] };
}

//
// A
//

// Copies n bits from bit `from` on to whole bytes.
static void copy_bits(const uint8_t * src, int64_t from, int64_t n, uint8_t * out) {
    const int     shift   = (int) (from % 8);
    const int64_t n_bytes = (n + 7) / 8;
    src += from / 8;
    if (shift == 0) {
        memcpy(out, src, (size_t) n_bytes);
        return;
    }
    const int64_t n_src = (shift + n + 7) / 8; // Behind the last one may be the end of the data.
    for (int64_t b = 0; b < n_bytes; b++) {
        out[b] = (uint8_t) (src[b] >> shift | (b + 1 < n_src ? src[b + 1] << (8 - shift) : 0));
    }
}

// Sets the tile to columns k0 to k0 + n - 1 of rows i0 to i0 + n_i - 1 of A. The row behind them holds a plane's scales.
static void decode_a(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i0, int n_i, int64_t k0, int64_t n,
                     struct dqrelo_tile & tile) {
    uint8_t bits[DQRELO_FOLD_COLUMNS / 8];
    float * scale = tile.spare_row();
    for (int i = 0; i < n_i; i++) {
        memset(tile.row(i), 0, (size_t) (n + 7) / 8 * 8 * sizeof(float));
    }
    for_each_plane(e, k0, [&](int, int64_t rank, int64_t code) {
        const int64_t n_k = min_i64(n, rank - k0);
        const int64_t end = (n_k + 7) / 8 * 8;
        const int64_t bit = (code + k0) % 8;
        sign_rows     a(e->transposed != 0, e->usign, e->n_out, e->n_codes / 8, (code + k0) / 8, (bit + n_k + 7) / 8);
        for (int64_t k = 0; k < end; k++) {
            scale[k] = k < n_k ? dqrelo_bf16_to_f32(((const uint16_t *) e->uscale)[code + k0 + k]) : 0.0f;
        }
        for (int i = 0; i < n_i; i++) {
            copy_bits(a.row(i0 + i), bit, n_k, bits);
            kernels->fold_signs(tile.row(i), bits, 1.0f, scale, end);
        }
    });
    for (int i = 0; i < n_i; i++) {
        tile.complete(i, n);
    }
}

void dqrelo_decoded_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t i0, int64_t i1, float * memory) {
    struct dqrelo_tile tile = { kernels, memory, g->bx_step != nullptr, {} };
    for (; i0 < i1; i0 += DQRELO_FOLD_TILE_I) {
        const int n_i = (int) min_i64(DQRELO_FOLD_TILE_I, i1 - i0);
        for (int64_t k0 = 0; k0 < g->e.plane_ranks[0]; k0 += DQRELO_FOLD_COLUMNS) {
            const int64_t n = min_i64(DQRELO_FOLD_COLUMNS, g->e.plane_ranks[0] - k0);
            decode_a(kernels, &g->e, i0, n_i, k0, n, tile);
            tile.multiply(g, n_i, n, true, [&](int64_t t) { return bx_piece(g, t, k0); }, [&](int64_t t) { return g->rows[t].dst + i0; });
        }
    }
}
