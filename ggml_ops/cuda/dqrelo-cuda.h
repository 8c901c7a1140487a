// dqrelo-cuda.h: what the host gives to the launchers of the op DQRELO on a CUDA device. No CUDA type is needed to include it.
#pragma once

#include "dqrelo-op.h"

#include <stddef.h>

// A node of the op as plain numbers, which is passed to the kernels by value. Rows are F32; distances between rows are in elements.
struct dqrelo_cuda_op {
    enum dqrelo_form            form;
    float *                     dst;
    const float *               y;
    const float *               x;   // MATMUL, MATMUL_ID and MUL have it.
    const int32_t *             ids; // May be NULL.
    const struct dqrelo_entry * table;
    const float *               tokens; // {delta index or -1, request scale} of each token
    // MATMUL: {token, delta index or -1} sorted by delta index; NULL where that does not order the rows of y.
    const float * sorted_tokens;
    int32_t       n_tokens; // number of tokens
    // Counts the rows of y that lie side by side and are for one token, before those of the next one.
    int32_t rows_per_token;
    int32_t n_deltas;
    int32_t n_in;      // row length of x
    int32_t n_out;     // row length of y
    int32_t ne[3];     // ne[1] to ne[3] of y
    int32_t x_ne1;     // MATMUL_ID: 1 if all experts of a token read one row
    int32_t stride[3]; // Leads from a row's position to its token.
    int64_t dst_nb[3], y_nb[3], x_nb[3], ids_nb[3];
    // MATMUL that computes the base's product, too: W, of a type of values.cuh; NULL where y is that product. With it, y is dst.
    const void * w;
    int64_t      w_row_bytes;
    int32_t      w_type; // enum ggml_type
};

struct dqrelo_cuda_op dqrelo_cuda_op_of(const struct ggml_tensor * dst);

static inline int64_t dqrelo_cuda_n_rows(const struct dqrelo_cuda_op * op) {
    return (int64_t) op->ne[0] * op->ne[1] * op->ne[2];
}

// Returns the bytes of work memory that MATMUL and MATMUL_ID need. It may have any contents, and is free again when the op is done.
size_t dqrelo_cuda_work_bytes(const struct dqrelo_cuda_op * op);

// The number of counters that every launch on a stream uses. They must be zero before the first one. A launch leaves zeros, so that no call
// has to clear them.
#define DQRELO_CUDA_COUNTERS 6

// Launches the op. Nothing is read from the device, and what is launched depends on shapes only, so that it can be part of a CUDA graph.
// n_sm is the number of the device's multiprocessors. Returns a cudaError_t.
int dqrelo_cuda_forward(const struct dqrelo_cuda_op * op, void * work, int32_t * counters, int n_sm, void * stream);
