#include "entry.h"

#include "factor-types.h"

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// row i of a matrix of n_cols columns
static const uint8_t * row_of(const void * data, int32_t type, int64_t i, int64_t n_cols) {
    return (const uint8_t *) data + i * dqrelo_type_bytes((enum ggml_type) type, n_cols);
}

static float scale_of(const struct dqrelo_entry * e, int p, int64_t i) {
    return e->scale[p][(e->scale_per_row >> p) & 1 ? i : 0];
}

//
// MATMUL
//

// t[r0 .. r1) = V[r0 .. r1) x, for every row of the group
static void factor_in(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t r0, int64_t r1) {
    const struct dqrelo_entry * e = g->e;
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += DQRELO_TILE_T) {
        const int     n_t = (int) min_i64(DQRELO_TILE_T, g->n_rows - t0);
        const float * x[DQRELO_TILE_T];
        for (int t = 0; t < n_t; t++) {
            x[t] = g->rows[t0 + t].x;
        }
        const enum ggml_type type = (enum ggml_type) e->type_v;
        kernels->dots(type, row_of(e->v, e->type_v, r0, e->n_in), dqrelo_type_bytes(type, e->n_in), (int) (r1 - r0), x, n_t, e->n_in,
                      g->t + t0 * g->t_stride + r0, g->t_stride);
    }
}

void dqrelo_matmul_prepare(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int ith, int nth) {
    const struct dqrelo_entry * e = g->e;
    if (e->dense) {
        return;
    }
    if (e->n_planes > 0) {
        const int64_t q_stride = dqrelo_q_bytes(e->n_in);
        for (int64_t t = ith; t < g->n_rows; t += nth) {
            kernels->quantize_row(g->rows[t].x, e->cscale, e->n_in, g->q + t * q_stride, g->act + t);
        }
    }
    // the thread that quantised the last row begins at the end of V
    const int64_t n_lines = (e->rank + 15) / 16; // of t
    const int     share   = nth - 1 - ith;
    const int64_t r0      = min_i64(e->rank, n_lines * share / nth * 16);
    const int64_t r1      = min_i64(e->rank, n_lines * (share + 1) / nth * 16);
    if (r0 < r1) {
        factor_in(kernels, g, r0, r1);
    }
}

// uv of a tile: U t, or dense x
static void factor_out(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t0, int n_t, int64_t i0, int n_i, float * uv) {
    const struct dqrelo_entry * e = g->e;
    const float *               b[DQRELO_TILE_T];
    for (int t = 0; t < n_t; t++) {
        b[t] = e->dense ? g->rows[t0 + t].x : g->t + (t0 + t) * g->t_stride;
    }
    const void *  a      = e->dense ? e->dense : e->u;
    const int32_t type   = e->dense ? e->type_dense : e->type_u;
    const int64_t n_cols = e->dense ? e->n_in : e->rank;
    kernels->dots((enum ggml_type) type, row_of(a, type, i0, n_cols), dqrelo_type_bytes((enum ggml_type) type, n_cols), n_i, b, n_t, n_cols, uv, DQRELO_TILE_I);
}

static void apply_tile(
    const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t0, int n_t, int64_t i0, int n_i, struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e        = g->e;
    const int                   n_planes = e->dense ? 0 : e->n_planes;
    const bool                  has_uv   = e->dense || e->rank > 0;

    const int64_t q_stride = dqrelo_q_bytes(e->n_in);
    for (int p = 0; p < n_planes; p++) {
        kernels->sign_dots(e->sign[p] + i0 * (e->n_in / 8), n_i, g->q + t0 * q_stride, q_stride, g->act + t0, n_t, e->n_in, scratch->isum[p], DQRELO_TILE_I);
    }
    if (has_uv) {
        factor_out(kernels, g, t0, n_t, i0, n_i, scratch->uv);
    }

    struct dqrelo_parts parts;
    parts.n_planes = n_planes;
    for (int p = 0; p < n_planes; p++) {
        parts.scale_step[p] = (e->scale_per_row >> p) & 1;
        parts.scale[p]      = e->scale[p] + i0 * parts.scale_step[p];
    }
    for (int t = 0; t < n_t; t++) {
        const struct dqrelo_row * row = g->rows + t0 + t;
        for (int p = 0; p < n_planes; p++) {
            parts.isum[p] = scratch->isum[p] + t * DQRELO_TILE_I;
        }
        parts.uv = has_uv ? scratch->uv + t * DQRELO_TILE_I : nullptr;
        parts.d  = n_planes > 0 ? g->act[t0 + t].d : 0.0f;
        parts.s  = row->s;
        kernels->add_delta(row->dst + i0, row->y + i0, n_i, &parts);
    }
}

void dqrelo_matmul_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t i0, int64_t i1, struct dqrelo_scratch * scratch) {
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += DQRELO_TILE_T) {
        const int n_t = (int) min_i64(DQRELO_TILE_T, g->n_rows - t0);
        for (int64_t i = i0; i < i1; i += DQRELO_TILE_I) {
            apply_tile(kernels, g, t0, n_t, i, (int) min_i64(DQRELO_TILE_I, i1 - i), scratch);
        }
    }
}

//
// ROWS
//

// acc[j] += sum_p scale_p s_p(id, j0 + j) c(j0 + j)
static void add_signs(const struct dqrelo_entry * e, int64_t id, int64_t j0, int64_t n, float * acc) {
    for (int p = 0; p < e->n_planes; p++) {
        const uint8_t * sign  = e->sign[p] + id * (e->n_in / 8) + j0 / 8;
        const float     scale = scale_of(e, p, id);
        for (int64_t j = 0; j < n; j++) {
            const float c = e->cscale ? e->cscale[j0 + j] * scale : scale;
            acc[j] += (sign[j / 8] >> (j % 8)) & 1 ? c : -c;
        }
    }
}

// acc[j] += sum_k U(id, k) V(k, j0 + j)
static void add_factors(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t id, int64_t j0, int64_t n, float * acc) {
    const enum ggml_type type_u = (enum ggml_type) e->type_u;
    const enum ggml_type type_v = (enum ggml_type) e->type_v;
    const uint8_t *      u_row  = row_of(e->u, e->type_u, id, e->rank);
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

void dqrelo_rows_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, const struct dqrelo_row * row, int64_t j0, int64_t j1) {
    for (; j0 < j1; j0 += DQRELO_TILE_J) {
        const int64_t n                  = min_i64(DQRELO_TILE_J, j1 - j0);
        float         acc[DQRELO_TILE_J] = { 0.0f };
        if (e->dense) {
            const enum ggml_type type = (enum ggml_type) e->type_dense;
            kernels->to_float(type, row_of(e->dense, e->type_dense, row->id, e->n_in) + dqrelo_type_bytes(type, j0), n, acc);
        } else {
            add_signs(e, row->id, j0, n, acc);
            add_factors(kernels, e, row->id, j0, n, acc);
        }
        for (int64_t j = 0; j < n; j++) {
            row->dst[j0 + j] = row->y[j0 + j] + row->s * acc[j];
        }
    }
}

//
// MUL, ADD
//

void dqrelo_elementwise_apply(
    const struct dqrelo_kernels * kernels, enum dqrelo_form form, const struct dqrelo_entry * e, const struct dqrelo_row * row, int64_t n) {
    const enum ggml_type type  = (enum ggml_type) e->type_dense;
    const uint8_t *      dense = row_of(e->dense, e->type_dense, row->id % e->n_out, e->n_in);
    for (int64_t j0 = 0; j0 < n;) {
        const int64_t column  = j0 % e->n_in; // ggml broadcasts a short row along the long one
        const int64_t n_piece = min_i64(min_i64(DQRELO_TILE_J, n - j0), e->n_in - column);
        float         delta[DQRELO_TILE_J];
        kernels->to_float(type, dense + dqrelo_type_bytes(type, column), n_piece, delta);
        for (int64_t j = j0; j < j0 + n_piece; j++) {
            const float factor = form == DQRELO_FORM_MUL ? row->x[j] : 1.0f;
            row->dst[j]        = row->y[j] + row->s * (factor * delta[j - j0]);
        }
        j0 += n_piece;
    }
}
