// entry.h: what one weight of one delta (a dqrelo_entry) adds to the rows that use it. It needs no ggml at link time.
#pragma once

#include "dqrelo-op.h"
#include "kernels.h"

// One row of the op's output.
struct dqrelo_row {
    const float * x; // MATMUL, MATMUL_ID [n_in]; MUL: as y
    const float * y; // may be dst
    float *       dst;
    int64_t       id;    // ROWS, MUL, ADD: the row of D_hat, counted through all matrices of a stack
    float         s;     // request scale
    int32_t       group; // MATMUL, MATMUL_ID: of the plan
};

// The rows of a batch that use one matrix, with their place in the work memory.
struct dqrelo_group {
    struct dqrelo_entry       e;    // of this matrix alone
    const struct dqrelo_row * rows; // [n_rows]
    int64_t                   n_rows;
    const int8_t *            q;        // [n_rows] rows of dqrelo_q_bytes(n_in)
    const struct dqrelo_act * act;      // [n_rows]
    float *                   t;        // [n_rows] rows of t_stride values: V x
    int64_t                   t_stride; // at least the rank
};

// How many rows and output features are handled at once. This bounds the scratch memory and never changes a result.
#define DQRELO_TILE_T 50 // two rows, and then sixteen times the three that the kernels take at once
#define DQRELO_TILE_I 64

struct dqrelo_scratch {
    int32_t isum[DQRELO_MAX_PLANES][DQRELO_TILE_T * DQRELO_TILE_I];
    float   uv[DQRELO_TILE_T * DQRELO_TILE_I];
};

static inline bool dqrelo_entry_is_empty(const struct dqrelo_entry * e) {
    return e->n_planes == 0 && e->rank == 0 && e->dense == nullptr;
}

// The first half of MATMUL, beside the quantisation of the activation rows: computes values r0 <= r < r1 of t = V x for all rows of the
// group. All of t must be there before the second half.
void dqrelo_matmul_factor(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t r0, int64_t r1);

// The second half of MATMUL: computes output features i0 <= i < i1 of all rows of the group.
void dqrelo_matmul_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t i0, int64_t i1,
                         struct dqrelo_scratch * scratch);

// ROWS: computes columns j0 <= j < j1 of one row; j0 is a multiple of DQRELO_TILE_J.
#define DQRELO_TILE_J 128
void dqrelo_rows_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, const struct dqrelo_row * row, int64_t j0,
                       int64_t j1);

// MUL and ADD: computes one row of n values.
void dqrelo_elementwise_apply(const struct dqrelo_kernels * kernels, enum dqrelo_form form, const struct dqrelo_entry * e,
                              const struct dqrelo_row * row, int64_t n);
