// rows.cuh: rows of the op's tensors on the device: where they lie, and which entry and matrix they use.
#pragma once

#include "../cpu/factor-types.h"
#include "dqrelo-cuda.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

static constexpr int WARP      = 32;
static constexpr int N_WARPS   = 4;
static constexpr int N_THREADS = N_WARPS * WARP; // threads of a block that computes a matrix form

struct dqrelo_position {
    int32_t i1, i2, i3;
};

static __device__ __forceinline__ dqrelo_position position_of(const dqrelo_cuda_op & op, int32_t row) {
    return { row % op.ne[0], row / op.ne[0] % op.ne[1], row / (op.ne[0] * op.ne[1]) };
}

static __device__ __forceinline__ int64_t offset_of(const int64_t nb[3], const dqrelo_position & at) {
    return at.i1 * nb[0] + at.i2 * nb[1] + at.i3 * nb[2];
}

static __device__ __forceinline__ const float * x_row(const dqrelo_cuda_op & op, int32_t row) {
    dqrelo_position at = position_of(op, row);
    at.i1 %= op.x_ne1;
    return op.x + offset_of(op.x_nb, at);
}

// {delta index or -1, request scale} of a row's token.
static __device__ __forceinline__ const float * token_of(const dqrelo_cuda_op & op, const dqrelo_position & at) {
    return op.tokens + 2 * (at.i1 * op.stride[0] + at.i2 * op.stride[1] + at.i3 * op.stride[2]);
}

// The host never sees tables and tokens: a wrong one stops the device, as GGML_ASSERT stops the CPU.
static __device__ __forceinline__ void check(bool good) {
    if (!good) {
        __trap();
    }
}

// Returns the entry of a delta, or null where there is no delta, or it has nothing for this weight.
static __device__ __forceinline__ const dqrelo_entry * entry_of_delta(const dqrelo_cuda_op & op, int32_t delta) {
    check(delta < op.n_deltas);
    if (delta < 0) {
        return nullptr;
    }
    const dqrelo_entry * e = op.table + delta;
    return e->n_planes == 0 && e->rank == 0 && e->n_codes == 0 && e->dense == nullptr && e->entries == nullptr ? nullptr : e;
}

// Returns the delta index of a token, or -1 where it has no delta, or the scale is 0.
static __device__ __forceinline__ int32_t delta_of(const float * token) {
    return token[1] == 0.0f ? -1 : (int32_t) token[0];
}

// Returns the entry that changes a row, or null.
static __device__ __forceinline__ const dqrelo_entry * entry_of(const dqrelo_cuda_op & op, const float * token) {
    return entry_of_delta(op, delta_of(token));
}

// In MATMUL and MATMUL_ID, the first row of y that is made from the same row of x. These rows are the experts of one token, so they have
// one entry.
static __device__ __forceinline__ int32_t first_row_of_x(const dqrelo_cuda_op & op, int32_t row) {
    return op.x_ne1 == 1 ? row - row % op.ne[0] : row;
}

// Whose quantised activation a row uses: only a column scale makes rows of their own for each expert.
static __device__ __forceinline__ int32_t quantized_row_of(const dqrelo_cuda_op & op, const dqrelo_entry & e, int32_t row) {
    return e.cscale ? row : first_row_of_x(op, row);
}

// Whether the activation is multiplied with signs, for which it is quantised.
static __device__ __forceinline__ bool has_signs(const dqrelo_entry & e) {
    return e.dense == nullptr && (e.n_planes > 0 || e.n_codes > 0);
}

// One matrix of an entry. The entry stays in device memory: a copy with an array indexed by the plane would lie in local memory.
struct matrix_ref {
    const dqrelo_entry * e;
    int32_t              m;

    __device__ __forceinline__ const uint8_t * sign_row(int p, int64_t i) const { return e->sign[p] + (m * e->n_out + i) * (e->n_in / 8); }
    __device__ __forceinline__ float           scale(int p, int64_t i) const {
        return e->scale[p][(e->scale_per_row >> p) & 1 ? m * e->n_out + i : m];
    }
    __device__ __forceinline__ const float *   cscale() const { return e->cscale ? e->cscale + m * e->n_in : nullptr; }
    __device__ __forceinline__ const void *    u_row(int64_t i) const { return row(e->u, e->type_u, e->rank, m * e->n_out + i); }
    __device__ __forceinline__ const void *    v_row(int64_t k) const { return row(e->v, e->type_v, e->n_in, m * e->rank + k); }
    __device__ __forceinline__ const uint8_t * vsign_row(int64_t code) const { return e->vsign + (m * e->n_codes + code) * (e->n_in / 8); }
    __device__ __forceinline__ const uint8_t * usign_row(int64_t i) const { return e->usign + (m * e->n_out + i) * (e->n_codes / 8); }
    __device__ __forceinline__ float           vscale(int64_t code) const { return bf16(e->vscale, m * e->n_codes + code); }
    __device__ __forceinline__ float           uscale(int64_t code) const { return bf16(e->uscale, m * e->n_codes + code); }
    __device__ __forceinline__ const void * dense_row(int64_t i) const { return row(e->dense, e->type_dense, e->n_in, m * e->n_out + i); }

private:
    static __device__ __forceinline__ float bf16(const void * data, int64_t i) {
        return __uint_as_float((uint32_t) ((const uint16_t *) data)[i] << 16);
    }
    static __device__ __forceinline__ const void * row(const void * data, int32_t type, int64_t n_columns, int64_t i) {
        return (const uint8_t *) data + i * dqrelo_type_bytes((ggml_type) type, n_columns);
    }
};

// Returns an id as the graph has it, kept in 0 .. n - 1: of a router that met NaN it may be anything.
static __device__ __forceinline__ int64_t id_in_range(int64_t id, int64_t n) {
    return id < 0 ? 0 : id < n ? id : n - 1;
}

// In MATMUL and MATMUL_ID, which matrix of a stack a row is multiplied with.
static __device__ __forceinline__ int32_t matrix_of(const dqrelo_cuda_op & op, const dqrelo_entry & e, const dqrelo_position & at) {
    const int32_t matrix = op.form == DQRELO_FORM_MATMUL_ID ? op.ids[offset_of(op.ids_nb, at)] : at.i2 / (op.ne[1] / (int32_t) e.n_mat);
    return (int32_t) id_in_range(matrix, e.n_mat);
}

// Checks what the host cannot see.
static __device__ __forceinline__ void check_matrix(const dqrelo_cuda_op & op, const dqrelo_entry & e) {
    const int32_t smaller = min(op.n_in, op.n_out);
    check(e.n_in == op.n_in && e.n_out == op.n_out && e.n_planes <= DQRELO_MAX_PLANES && e.rank <= smaller);
    check(e.plane_ranks[0] <= smaller && e.n_codes <= DQRELO_MAX_CODES_A_SIDE * smaller);
}
