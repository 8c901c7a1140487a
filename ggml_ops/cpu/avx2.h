// avx2.h: what the AVX2 kernels share.
#pragma once

#include "kernels.h"
#include "unrolled.h"

#include <immintrin.h>

// Returns the sums of the lanes of four vectors, in their order.
static inline __m128i sums_i32x4(__m256i v0, __m256i v1, __m256i v2, __m256i v3) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v0, v1), _mm256_hadd_epi32(v2, v3));
    return _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}

// Returns a mask for the first n of four lanes: -1 there, 0 in the others.
static inline __m128i lanes_i32x4(int n) {
    return _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
}

// Returns a mask for the first n of eight lanes: -1 there, 0 in the others.
static inline __m256i lanes_i32x8(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int) (n < 8 ? n : 8)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// dqrelo_kernels::sign_dots for AVX2; it is in avx2-signs.cpp.
void sign_dots_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                    int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);

// The same for one row of q; it is in avx2-sign-row.cpp.
void sign_dots_row_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t n, struct dqrelo_ahead * ahead);
