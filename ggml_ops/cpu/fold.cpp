#include "fold.h"

#include "factor-types.h"
#include "k-quants.h"
#include "sign-rows.h"
#include "tile-products.h"

// Sets out to columns j0 to j0 + n - 1 of row i of W.
static void dequantise(const struct dqrelo_kernels * kernels, const struct dqrelo_base * base, int64_t i, int64_t j0, int64_t n,
                       float * out) {
    const int64_t   first = j0 / base->block_values;
    const uint8_t * src   = base->data + i * base->row_bytes + first * base->block_bytes;
    uint8_t         restored[DQRELO_FOLD_COLUMNS];
    if (base->restore) {
        base->restore(base->type, base->data, base->row_bytes / base->block_bytes, i, first, n / base->block_values, restored);
        src = restored;
    }
    if (dqrelo_type_bytes(base->type, DQRELO_QK) > 0 || dqrelo_is_k_quant(base->type)) {
        kernels->to_float(base->type, src, n, out);
    } else {
        base->to_float(src, out, n);
    }
}

// Adds s * (planes, or dense or sparse part) of the same columns, whose signs are `planes`. `row` has room for them.
static void add_delta_columns(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, float s, int64_t i, int64_t j0,
                              int64_t n, sign_rows * planes, float * out, float * row) {
    if (e->dense || e->entries) {
        if (e->entries) {
            dqrelo_sparse_columns(kernels, e, i, j0, n, row);
        } else {
            const enum ggml_type type = (enum ggml_type) e->type_dense;
            kernels->to_float(type, (const uint8_t *) e->dense + dqrelo_type_bytes(type, i * e->n_in + j0), n, row);
        }
        for (int64_t j = 0; j < n; j++) {
            out[j] += s * row[j];
        }
        return;
    }
    for (int p = 0; p < e->n_planes; p++) {
        kernels->fold_signs(out, planes[p].row(i), s * scale_of(e, p, i), e->cscale ? e->cscale + j0 : nullptr, n);
    }
}

void dqrelo_fold_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_base * base, const struct dqrelo_group * g, float s,
                       int64_t i0, int64_t i1, float * memory) {
    struct dqrelo_tile tile = { kernels, memory, dqrelo_fold_is_i16(kernels, base->type), {} };
    for (; i0 < i1; i0 += DQRELO_FOLD_TILE_I) {
        const int n_i = (int) min_i64(DQRELO_FOLD_TILE_I, i1 - i0);
        for (int64_t j0 = 0; j0 < g->e.n_in; j0 += DQRELO_FOLD_COLUMNS) {
            const int64_t n     = min_i64(DQRELO_FOLD_COLUMNS, g->e.n_in - j0);
            const auto    plane = [&](int p) {
                return sign_rows(g->e.transposed != 0, g->e.sign[p], g->e.n_out, g->e.n_in / 8, j0 / 8, n / 8);
            };
            sign_rows planes[DQRELO_MAX_PLANES] = { plane(0), plane(1), plane(2), plane(3) };
            for (int i = 0; i < n_i; i++) {
                dequantise(kernels, base, i0 + i, j0, n, tile.row(i));
                add_delta_columns(kernels, &g->e, s, i0 + i, j0, n, planes, tile.row(i), tile.spare_row());
                tile.complete(i, n);
            }
            tile.multiply(
                g, n_i, n, j0 > 0, [&](int64_t t) { return dqrelo_x_piece(&g->rows[t], j0); },
                [&](int64_t t) { return g->rows[t].dst + i0; });
        }
    }
}
