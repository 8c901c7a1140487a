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

// Loads the first n of some values, zeros for the others, and stores the first n. CPUs of AMD make dozens of instructions of a store with a
// mask, so full vectors go without one.
static inline __m128 load_first(const float * src, int n) {
    return n >= 4 ? _mm_loadu_ps(src) : _mm_maskload_ps(src, lanes_i32x4(n));
}

static inline __m256 load_first_8(const float * src, int64_t n) {
    return n >= 8 ? _mm256_loadu_ps(src) : _mm256_maskload_ps(src, lanes_i32x8(n));
}

static inline __m256i load_first_8(const int32_t * src, int64_t n) {
    return _mm256_castps_si256(load_first_8((const float *) src, n));
}

static inline void store_first(float * out, __m128 v, int n) {
    if (n >= 4) {
        _mm_storeu_ps(out, v);
    } else {
        _mm_maskstore_ps(out, lanes_i32x4(n), v);
    }
}

static inline void store_first_8(float * out, __m256 v, int64_t n) {
    if (n >= 8) {
        _mm256_storeu_ps(out, v);
    } else {
        _mm256_maskstore_ps(out, lanes_i32x8(n), v);
    }
}

static inline void store_first_8(int32_t * out, __m256i v, int64_t n) {
    store_first_8((float *) out, _mm256_castsi256_ps(v), n);
}

// dqrelo_kernels::sign_dots for AVX2; it is in avx2-signs.cpp.
void sign_dots_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                    int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);

// The same for AVX-VNNI; it is in avxvnni-sign-row.cpp.
void sign_dots_avxvnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                       const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);

// The one for AVX2 of one row of q, with its tables or NULL; it is in avx2-sign-row.cpp.
void sign_dots_row_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, const void * tables, int64_t n,
                        struct dqrelo_ahead * ahead);

// dqrelo_kernels::tables_bytes and make_tables for both; they lie beside the products of one row.
int64_t tables_bytes_avx2(int64_t n);
int64_t tables_bytes_avxvnni(int64_t n);
void    make_tables_avx2(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act);
void    make_tables_avxvnni(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act);
