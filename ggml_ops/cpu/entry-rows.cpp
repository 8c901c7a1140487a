// entry-rows.cpp: what a delta adds in the forms that are no products: ROWS, MUL and ADD, which write out rows of D_hat.

#include "entry.h"
#include "factor-types.h"
#include "sign-rows.h"
#include "stack.h"

#include <string.h>

namespace {

// The eight signs of every byte.
struct sign_table {
    float signs[256][8] = {};

    constexpr sign_table() {
        for (int byte = 0; byte < 256; byte++) {
            for (int b = 0; b < 8; b++) {
                signs[byte][b] = byte >> b & 1 ? 1.0f : -1.0f;
            }
        }
    }
};

constexpr sign_table SIGNS;

} // namespace

// Adds sum_k w_k s_k(j) to acc[j] for n_cols columns, a multiple of 8, of n rows of signs, `stride` bytes apart.
static void add_signs(const uint8_t * sign, int64_t stride, const float * w, int n, int64_t n_cols, float * acc) {
    for (int64_t j = 0; j < n_cols; j += 8) {
        float sum[8] = {};
        for (int k = 0; k < n; k++) {
            const float * signs = SIGNS.signs[sign[k * stride + j / 8]];
            for (int b = 0; b < 8; b++) {
                sum[b] += w[k] * signs[b];
            }
        }
        for (int b = 0; b < 8; b++) {
            acc[j + b] += sum[b];
        }
    }
}

// Adds sum_p scale_p s_p(i, j0 + j) to acc[j]; j0 is a multiple of 8.
static void add_planes(const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n, float * acc) {
    for (int p = 0; p < e->n_planes; p++) {
        const float scale = scale_of(e, p, i);
        sign_rows   plane(e->transposed != 0, e->sign[p], e->n_out, e->n_in / 8, j0 / 8, n / 8);
        add_signs(plane.row(i), 0, &scale, 1, n, acc);
    }
}

// Adds sum_k A(i, k) B(k, j0 + j) to acc[j]; j0 is a multiple of 8. With A(i, k) known, what B adds is a sum over codes.
static void add_sign_factors(const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n, float * acc) {
    constexpr int N_RANKS = 64; // at a time
    for (int64_t k0 = 0; k0 < e->plane_ranks[0]; k0 += N_RANKS) {
        float   a[N_RANKS] = {};
        int64_t code       = k0;
        for (int p = 0; p < DQRELO_MAX_CODE_PLANES && k0 < e->plane_ranks[p]; code += e->plane_ranks[p++]) {
            const int64_t   n_k = min_i64(N_RANKS, e->plane_ranks[p] - k0), bit = code % 8;
            sign_rows       u(e->transposed != 0, e->usign, e->n_out, e->n_codes / 8, code / 8, (bit + n_k + 7) / 8);
            const uint8_t * u_row = u.row(i);
            for (int64_t k = 0; k < n_k; k++) {
                const float scale = bf16_at(e->uscale, code + k);
                a[k] += u_row[(bit + k) / 8] >> ((bit + k) % 8) & 1 ? scale : -scale;
            }
        }
        code = k0;
        for (int p = 0; p < DQRELO_MAX_CODE_PLANES && k0 < e->plane_ranks[p]; code += e->plane_ranks[p++]) {
            const int n_k = (int) min_i64(N_RANKS, e->plane_ranks[p] - k0);
            sign_rows v(e->transposed != 0, e->vsign, e->n_codes, e->n_in / 8, j0 / 8, n / 8);
            uint8_t   signs[N_RANKS * DQRELO_TILE_J / 8];
            float     w[N_RANKS];
            for (int k = 0; k < n_k; k++) {
                w[k] = a[k] * bf16_at(e->vscale, code + k);
                memcpy(signs + k * (DQRELO_TILE_J / 8), v.row(code + k), (size_t) n / 8);
            }
            add_signs(signs, DQRELO_TILE_J / 8, w, n_k, n, acc);
        }
    }
}

// Adds sum_k U(i, k) V(k, j0 + j) to acc[j].
static void add_factors(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                        float * acc) {
    const enum ggml_type type_u = (enum ggml_type) e->type_u;
    const enum ggml_type type_v = (enum ggml_type) e->type_v;
    const uint8_t *      u_row  = row_of(e->u, e->type_u, i, e->rank);
    for (int64_t k0 = 0; k0 < e->rank; k0 += DQRELO_QK) {
        float     u[DQRELO_QK];
        const int n_k = (int) min_i64(DQRELO_QK, e->rank - k0);
        kernels->to_float(type_u, u_row + dqrelo_type_bytes(type_u, k0), n_k, u);
        for (int k = 0; k < n_k; k++) {
            float v[DQRELO_TILE_J];
            kernels->to_float(type_v, row_of(e->v, e->type_v, k0 + k, e->n_in) + dqrelo_type_bytes(type_v, j0), n, v);
            for (int64_t j = 0; j < n; j++) {
                acc[j] += u[k] * v[j];
            }
        }
    }
}

// Sets out[j] to D_hat(i, j0 + j) for n <= DQRELO_TILE_J columns; j0 is a multiple of DQRELO_TILE_J.
static void delta_columns(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                          float * out) {
    if (e->dense) {
        const enum ggml_type type = (enum ggml_type) e->type_dense;
        kernels->to_float(type, row_of(e->dense, e->type_dense, i, e->n_in) + dqrelo_type_bytes(type, j0), n, out);
        return;
    }
    if (e->entries) {
        dqrelo_sparse_columns(kernels, e, i, j0, n, out);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        out[j] = 0.0f;
    }
    add_planes(e, i, j0, n, out);
    add_sign_factors(e, i, j0, n, out);
    for (int64_t j = 0; e->cscale && j < n; j++) {
        out[j] *= e->cscale[j0 + j];
    }
    add_factors(kernels, e, i, j0, n, out);
}

void dqrelo_rows_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, const struct dqrelo_row * row, int64_t j0,
                       int64_t j1) {
    const struct dqrelo_entry matrix = dqrelo_entry_matrix(e, row->id / e->n_out);
    for (; j0 < j1; j0 += DQRELO_TILE_J) {
        const int64_t n = min_i64(DQRELO_TILE_J, j1 - j0);
        float         delta[DQRELO_TILE_J];
        delta_columns(kernels, &matrix, row->id % e->n_out, j0, n, delta);
        for (int64_t j = 0; j < n; j++) {
            row->dst[j0 + j] = row->y[j0 + j] + row->s * delta[j];
        }
    }
}

void dqrelo_elementwise_apply(const struct dqrelo_kernels * kernels, enum dqrelo_form form, const struct dqrelo_entry * e,
                              const struct dqrelo_row * row, int64_t n) {
    const struct dqrelo_entry matrix = dqrelo_entry_matrix(e, row->id / e->n_out);
    for (int64_t column = 0; column < e->n_in; column += DQRELO_TILE_J) {
        const int64_t n_tile = min_i64(DQRELO_TILE_J, e->n_in - column);
        float         delta[DQRELO_TILE_J];
        delta_columns(kernels, &matrix, row->id % e->n_out, column, n_tile, delta);
        for (int64_t j0 = column; j0 < n; j0 += e->n_in) { // ggml broadcasts a short row along the long one
            for (int64_t j = 0; j < n_tile; j++) {
                const float factor = form == DQRELO_FORM_MUL ? row->x[j0 + j] : 1.0f;
                row->dst[j0 + j]   = row->y[j0 + j] + row->s * (factor * delta[j]);
            }
        }
    }
}
