// sparse.cuh: sparse weights on the device: one element, and products of a row with F32 rows.
//
// A row's places are read in order, so that the number of an entry, which says where its value is, is known: of a mask, by counting bits;
// of lists, by adding up the counts of blocks. Sums take the entries of a row in an order that depends on their places only.
#pragma once

#include "values.cuh"

#include "../cpu/stack.h"

// Row i of one matrix of a sparse weight; i counts through all matrices.
struct sparse_row {
    const dqrelo_entry * e;
    int64_t              i;

    __device__ __forceinline__ sparse_row(const matrix_ref & matrix, int64_t row) : e(matrix.e), i(matrix.m * matrix.e->n_out + row) {}

    __device__ __forceinline__ int             first() const { return e->start[i]; }
    __device__ __forceinline__ const uint8_t * counts() const { return e->count + i * dqrelo_sparse_blocks(e->n_in); }

    // Returns bits 32 w to 32 w + 31 of the mask, zeros behind the row's end.
    __device__ __forceinline__ uint32_t mask_word(int w) const {
        const int       n_bytes = (int) (e->n_in / 8);
        const uint8_t * bytes   = e->mask + i * n_bytes + 4 * w;
        if (4 * w + 4 <= n_bytes && ((uintptr_t) bytes & 3) == 0) {
            return *(const uint32_t *) bytes;
        }
        uint32_t word = 0;
        for (int b = 0; b < 4 && 4 * w + b < n_bytes; b++) {
            word |= (uint32_t) bytes[b] << (8 * b);
        }
        return word;
    }

    __device__ __forceinline__ float value(int64_t at) const {
        switch (e->type_entries) {
            case GGML_TYPE_F16: return half_bits(((const uint16_t *) e->entries)[at]);
            case GGML_TYPE_BF16: return __uint_as_float((uint32_t) ((const uint16_t *) e->entries)[at] << 16);
            default: return e->escale[i] * half_bits((uint16_t) (((const uint8_t *) e->entries)[at] << 8));
        }
    }
};

//
// one element
//

// D_hat(i, j) of a row.
static __device__ __forceinline__ float sparse_at(const sparse_row & row, int j) {
    int at = row.first();
    if (row.e->mask) {
        for (int w = 0; w < j / 32; w++) {
            at += __popc(row.mask_word(w));
        }
        const uint32_t word = row.mask_word(j / 32);
        at += __popc(word & ((1u << (j % 32)) - 1));
        return word >> (j % 32) & 1 ? row.value(at) : 0.0f;
    }
    const uint8_t * count = row.counts();
    for (int b = 0; b < j / DQRELO_SPARSE_BLOCK; b++) {
        at += *count++;
    }
    for (int end = at + *count; at < end; at++) {
        if (row.e->column[at] == j % DQRELO_SPARSE_BLOCK) {
            return row.value(at);
        }
    }
    return 0.0f;
}

//
// few rows of x
//

// Returns the sum over the lanes before this one, of LANES that stand together.
template <int LANES>
static __device__ __forceinline__ int sum_before(int value) {
    const int lane = (int) threadIdx.x % LANES;
    int       sum  = value;
#pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, sum, distance, LANES);
        sum += lane >= distance ? before : 0;
    }
    return sum - value;
}

// Adds this lane's share of a row times b[t] to sum[t], for T rows b. All lanes of a warp call it, LANES of them for one row.
template <int LANES, int T>
static __device__ __forceinline__ void add_sparse_dots(const sparse_row & row, const float * const b[T], float sum[T]) {
    const int  lane = (int) threadIdx.x % LANES;
    const int  n    = (int) row.e->n_in;
    int        at   = row.first();
    const auto add  = [&](int entry, int column) {
        const float value = row.value(entry);
#pragma unroll
        for (int t = 0; t < T; t++) {
            sum[t] = fmaf(value, b[t][column], sum[t]);
        }
    };
    if (row.e->mask) {
        for (int j0 = 0; j0 < n; j0 += 32 * LANES) {
            const int j      = j0 + 32 * lane;
            uint32_t  word   = j < n ? row.mask_word(j / 32) : 0;
            const int before = sum_before<LANES>(__popc(word));
            const int total  = __shfl_sync(0xffffffffu, before + __popc(word), LANES - 1, LANES);
            for (int entry = at + before; word; entry++, word &= word - 1) {
                add(entry, j + __ffs((int) word) - 1);
            }
            at += total;
        }
        return;
    }
    const uint8_t * count = row.counts();
    for (int j0 = 0; j0 < n; j0 += DQRELO_SPARSE_BLOCK, count++) {
        const int end = at + *count;
        for (int entry = at + lane; entry < end; entry += LANES) {
            add(entry, j0 + row.e->column[entry]);
        }
        at = end;
    }
}
