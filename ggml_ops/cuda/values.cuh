// values.cuh: U, V and dense deltas on the device: one value, eight values, dot products with F32 rows.
#pragma once

#include "rows.cuh"

#include <type_traits>

static __device__ __forceinline__ bool is_aligned_16(const void * p) {
    return ((uintptr_t) p & 15) == 0;
}

static __device__ __forceinline__ float half_bits(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

// Returns value j of a row of type TYPE.
template <ggml_type TYPE>
static __device__ __forceinline__ float value_at(const void * row, int j) {
    if (TYPE == GGML_TYPE_F32) {
        return ((const float *) row)[j];
    }
    if (TYPE == GGML_TYPE_F16) {
        return half_bits(((const uint16_t *) row)[j]);
    }
    if (TYPE == GGML_TYPE_BF16) {
        return __uint_as_float((uint32_t) ((const uint16_t *) row)[j] << 16);
    }
    if (TYPE == GGML_TYPE_Q8_0) {
        const dqrelo_q8_0 * block = (const dqrelo_q8_0 *) row + j / DQRELO_QK;
        return half_bits(block->d) * block->qs[j % DQRELO_QK];
    }
    const dqrelo_q4_0 * block = (const dqrelo_q4_0 *) row + j / DQRELO_QK;
    const int           k     = j % DQRELO_QK;
    return half_bits(block->d) * ((k < 16 ? block->qs[k] & 15 : block->qs[k - 16] >> 4) - 8);
}

// Calls f with a storage type as a constant. All lanes of a warp have the same type.
template <typename F>
static __device__ __forceinline__ auto with_type(int32_t type, F f) {
    switch (type) {
        case GGML_TYPE_F32: return f(std::integral_constant<ggml_type, GGML_TYPE_F32>());
        case GGML_TYPE_F16: return f(std::integral_constant<ggml_type, GGML_TYPE_F16>());
        case GGML_TYPE_BF16: return f(std::integral_constant<ggml_type, GGML_TYPE_BF16>());
        case GGML_TYPE_Q8_0: return f(std::integral_constant<ggml_type, GGML_TYPE_Q8_0>());
        default: return f(std::integral_constant<ggml_type, GGML_TYPE_Q4_0>());
    }
}

static __device__ __forceinline__ float value_of(int32_t type, const void * row, int j) {
    return with_type(type, [=](auto t) { return value_at<decltype(t)::value>(row, j); });
}

// Eight values from a multiple of 16 bytes.
static __device__ __forceinline__ void load_8_floats(const float * p, float out[8]) {
    const float4 a = *(const float4 *) p;
    const float4 b = *(const float4 *) (p + 4);
    out[0]         = a.x;
    out[1]         = a.y;
    out[2]         = a.z;
    out[3]         = a.w;
    out[4]         = b.x;
    out[5]         = b.y;
    out[6]         = b.z;
    out[7]         = b.w;
}

// Eight bytes from an even address: blocks of Q8_0 and Q4_0 are aligned to two.
static __device__ __forceinline__ void load_8_bytes(const void * p, uint32_t out[2]) {
    const uint16_t * half_words = (const uint16_t *) p;
    out[0]                      = half_words[0] | (uint32_t) half_words[1] << 16;
    out[1]                      = half_words[2] | (uint32_t) half_words[3] << 16;
}

// Loads values j to j + 7 of a row; j is a multiple of 8, and the row of F32, F16 and BF16 begins at a multiple of 16 bytes.
template <ggml_type TYPE>
static __device__ __forceinline__ void load_8(const void * row, int j, float out[8]) {
    if (TYPE == GGML_TYPE_F32) {
        load_8_floats((const float *) row + j, out);
    } else if (TYPE == GGML_TYPE_F16 || TYPE == GGML_TYPE_BF16) {
        const uint4    packed  = *(const uint4 *) ((const uint16_t *) row + j);
        const uint32_t pair[4] = { packed.x, packed.y, packed.z, packed.w };
#pragma unroll
        for (int k = 0; k < 4; k++) {
            out[2 * k]     = TYPE == GGML_TYPE_F16 ? half_bits((uint16_t) (pair[k] & 0xffff)) : __uint_as_float(pair[k] << 16);
            out[2 * k + 1] = TYPE == GGML_TYPE_F16 ? half_bits((uint16_t) (pair[k] >> 16)) : __uint_as_float(pair[k] & 0xffff0000);
        }
    } else if (TYPE == GGML_TYPE_Q8_0) {
        const dqrelo_q8_0 * block = (const dqrelo_q8_0 *) row + j / DQRELO_QK;
        const float         d     = half_bits(block->d);
        uint32_t            bytes[2];
        load_8_bytes(block->qs + j % DQRELO_QK, bytes);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            out[k] = d * (int8_t) (bytes[k / 4] >> (8 * (k % 4)));
        }
    } else {
        const dqrelo_q4_0 * block = (const dqrelo_q4_0 *) row + j / DQRELO_QK;
        const float         d     = half_bits(block->d);
        const int           at    = j % DQRELO_QK; // At 0 and 8 it is the low nibbles, at 16 and 24 the high ones.
        uint32_t            bytes[2];
        load_8_bytes(block->qs + at % 16, bytes);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            out[k] = d * (int) ((bytes[k / 4] >> (8 * (k % 4) + (at < 16 ? 0 : 4)) & 15) - 8);
        }
    }
}

// Adds this lane's share of a . b[t] to sum[t], for T rows b of n values. The order of additions depends on n and n_lanes only.
template <ggml_type TYPE, int T>
static __device__ __forceinline__ void add_dots(const void * a, const float * const b[T], int n, int lane, int n_lanes, float sum[T]) {
    bool aligned = TYPE == GGML_TYPE_Q8_0 || TYPE == GGML_TYPE_Q4_0 || is_aligned_16(a);
#pragma unroll
    for (int t = 0; t < T; t++) {
        aligned = aligned && is_aligned_16(b[t]);
    }
#pragma unroll 2
    for (int j = 8 * lane; j < n; j += 8 * n_lanes) {
        if (aligned && j + 8 <= n) {
            float va[8];
            load_8<TYPE>(a, j, va);
#pragma unroll
            for (int t = 0; t < T; t++) {
                float vb[8];
                load_8_floats(b[t] + j, vb);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    sum[t] = fmaf(va[k], vb[k], sum[t]);
                }
            }
            continue;
        }
#pragma unroll 1
        for (int k = j; k < min(j + 8, n); k++) { // The values are the same, in the same order.
            const float va = value_at<TYPE>(a, k);
#pragma unroll
            for (int t = 0; t < T; t++) {
                sum[t] = fmaf(va, b[t][k], sum[t]);
            }
        }
    }
}

template <int T>
static __device__ __forceinline__ void add_dots_of(int32_t type, const void * a, const float * const b[T], int n, int lane, int n_lanes,
                                                   float sum[T]) {
    with_type(type, [&](auto t) { add_dots<decltype(t)::value, T>(a, b, n, lane, n_lanes, sum); });
}
