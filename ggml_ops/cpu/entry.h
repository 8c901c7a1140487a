// entry.h: what one weight of one delta (a dqrelo_entry) adds to the rows that use it. It needs no ggml at link time.
#pragma once

#include "dqrelo-op.h"
#include "kernels.h"
#include "sparse.h"

// One row of the op's output.
struct dqrelo_row {
    const float * x; // MATMUL, MATMUL_ID: [n_in]; MUL: shape of y
    const float * y; // May be equal to dst.
    float *       dst;
    int64_t       id;    // ROWS, MUL, ADD: number of the row of D_hat, through all matrices of a stack
    float         s;     // request scale
    int32_t       group; // MATMUL, MATMUL_ID: number of the group in the plan
    // x as integers of 16 bits (kernels.h) and its dqrelo_i16_pieces steps, where the row may be multiplied with them; else NULL.
    const int16_t * x_i16;
    const float *   x_step;
};

// The rows of a batch that use one matrix, with their place in the work memory.
struct dqrelo_group {
    struct dqrelo_entry       e;    // Has this matrix alone.
    const struct dqrelo_row * rows; // [n_rows]
    int64_t                   n_rows;
    const int8_t *            q;         // [n_rows] rows of dqrelo_q_bytes(n_in)
    const struct dqrelo_act * act;       // [n_rows]
    float *                   t;         // [n_rows] rows of t_stride values: V x
    int64_t                   t_stride;  // at least the rank
    float *                   bx;        // [n_rows] rows of bx_stride values: what each code gives to B (c . x); decoded ones, B (c . x)
    int64_t                   bx_stride; // at least n_codes; plane_ranks[0]
    int8_t *                  zq;        // [n_rows] rows of zq_stride bytes: B (c . x) times uscale, quantised, a value a code
    int64_t                   zq_stride; // at least dqrelo_q_bytes(n_codes)
    struct dqrelo_act *       zact;      // [n_rows]
    float *                   bx_step;   // [n_rows] rows of dqrelo_i16_pieces(bx_stride) steps, where bx become integers
};

#define DQRELO_ROW_TILE_I 2048 // features at most where there is one row

struct dqrelo_scratch {
    int32_t isum[DQRELO_MAX_PLANES * DQRELO_TILE]; // of planes, or of tiles of a sign factor
    int32_t zsum[DQRELO_TILE];
    float   uv[DQRELO_TILE];
    float   sparse[DQRELO_SPARSE_TILE];
};

// Row i of a matrix of n_cols columns.
static inline const uint8_t * row_of(const void * data, int32_t type, int64_t i, int64_t n_cols) {
    return (const uint8_t *) data + i * dqrelo_type_bytes((enum ggml_type) type, n_cols);
}

static inline float bf16_at(const void * data, int64_t i) {
    return dqrelo_bf16_to_f32(((const uint16_t *) data)[i]);
}

// The scale of plane p in row i.
static inline float scale_of(const struct dqrelo_entry * e, int p, int64_t i) {
    return e->scale[p][(e->scale_per_row >> p) & 1 ? i : 0];
}

static inline bool dqrelo_entry_is_empty(const struct dqrelo_entry * e) {
    return e->n_planes == 0 && e->rank == 0 && e->n_codes == 0 && e->dense == nullptr && e->entries == nullptr;
}

// Whether the activation is multiplied with signs, for which it is quantised.
static inline bool dqrelo_entry_has_signs(const struct dqrelo_entry * e) {
    return e->dense == nullptr && (e->n_planes > 0 || e->n_codes > 0);
}

// MATMUL has up to four steps. Each needs all of what the one before made of a row: the activation rows are quantised, and beside that
// dqrelo_matmul_factor; for sign factors dqrelo_matmul_codes and dqrelo_matmul_quantize; dqrelo_matmul_apply.

// Computes values r0 <= r < r1 of t = V x for all rows of the group. `then` is what the thread reads afterwards.
void dqrelo_matmul_factor(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t r0, int64_t r1,
                          struct dqrelo_ahead then);

// Of a single row, signs may be multiplied before V x is known: instructions bound them, so memory has time to bring V meanwhile. Returns
// how many of n_i features, the first ones, are multiplied beside V: its part of the factors' bytes, so that the others leave time to bring
// U. That is the same for every thread, however many rows of V it has, or one would wait for another. 0 for more than one row, and where
// there are no signs or no V.
int64_t dqrelo_early_features(const struct dqrelo_group * group, int64_t n_i);

// As dqrelo_matmul_factor, and multiplies the signs of n_early features from i0 on meanwhile. Their sums stay in `scratch` for
// dqrelo_matmul_apply. There may be no rows of V.
void dqrelo_matmul_factor_early(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t r0, int64_t r1,
                                int64_t i0, int64_t n_early, struct dqrelo_scratch * scratch);

// Computes what codes c0 <= c < c1 give to B (c . x) for all rows of the group from their quantised activations.
void dqrelo_matmul_codes(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t c0, int64_t c1,
                         struct dqrelo_scratch * scratch);

// Quantises what the codes of A are multiplied with for row t of the group. z has room for n_codes values.
void dqrelo_matmul_quantize(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t t, float * z);

// Computes output features i0 <= i < i1 of all rows of the group. The signs of the first n_early of them have been multiplied. `then` is
// what the thread reads afterwards.
void dqrelo_matmul_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t i0, int64_t i1, int64_t n_early,
                         struct dqrelo_ahead then, struct dqrelo_scratch * scratch);

// Return the first bytes that dqrelo_matmul_factor and dqrelo_matmul_apply read of these rows of V and features, as far as kernels do not
// ask for them themselves.
struct dqrelo_ahead dqrelo_factor_begin(const struct dqrelo_entry * e, int64_t r0, int64_t r1);
struct dqrelo_ahead dqrelo_apply_begin(const struct dqrelo_entry * e, int64_t i0, int64_t i1);

// ROWS: computes columns j0 <= j < j1 of one row; j0 is a multiple of DQRELO_TILE_J.
#define DQRELO_TILE_J 128
void dqrelo_rows_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, const struct dqrelo_row * row, int64_t j0,
                       int64_t j1);

// MUL and ADD: computes one row of n values.
void dqrelo_elementwise_apply(const struct dqrelo_kernels * kernels, enum dqrelo_form form, const struct dqrelo_entry * e,
                              const struct dqrelo_row * row, int64_t n);
