// avx512vnni.h: what avx512vnni.cpp, avx512vnni-signs.cpp and avx512vbmi-signs.cpp share.
#pragma once

#include "kernels.h"
#include "sign-requests.h"
#include "unrolled.h"

#include <immintrin.h>

// Returns the mask of those of the columns j to j + 15 that are below n.
static inline __mmask16 columns_m16(int64_t j, int64_t n) {
    return n - j >= 16 ? 0xffff : n - j <= 0 ? 0 : (__mmask16) ((1u << (n - j)) - 1);
}

// Returns the mask of the first n of four rows.
static inline __mmask8 rows_m4(int n) {
    return n >= 4 ? 15 : n <= 0 ? 0 : (__mmask8) ((1 << n) - 1);
}

// Returns how many rows of q or b to take at once from row t on. The first two bring a tile of weights in from memory, with prefetches. The
// others find it in a cache and are taken by threes, whose sums take 24 registers.
static inline int rows_at_once(int t, int n_t) {
    const int most = t == 0 ? 2 : 3;
    return n_t - t < most ? n_t - t : most;
}

// Returns the bytes of a block's 64 columns in the order in which q is interleaved, or of an interleaved one as they were. Eight rows of
// eight bytes are transposed: in each lane the two rows are merged to pairs, and then pairs are brought together.
//
//   row l, bytes   8 l + k   ->   lane l / 2, pairs   8 (l / 2) + k   ->   byte   8 k + l
static inline __m512i interleave_q(__m512i bytes) {
    const __m512i merged = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    const __m512i by_k = _mm512_set_epi16(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4, 27, 19, 11, 3, 26, 18, 10, 2, 25, 17,
                                          9, 1, 24, 16, 8, 0);
    return _mm512_permutexvar_epi16(by_k, _mm512_shuffle_epi8(bytes, merged));
}

// Adds the products of the unsigned bytes u and the signed bytes s to acc. This is assembler because GCC 12 copies the accumulators of the
// intrinsic in every step of a loop, which was measured to be 1.2 (one row) to 1.7 times (three rows) slower.
static inline void dot_i32x16(__m512i & acc, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
}

// The tile of the tables of avx512vbmi-signs.cpp: to make a row's pays with many features.
static constexpr int TABLE_ROWS     = 12;
static constexpr int TABLE_FEATURES = 1024;
static_assert(TABLE_ROWS <= DQRELO_TILE_T && TABLE_ROWS * TABLE_FEATURES <= DQRELO_TILE, "a tile has room in the scratch memory");

// dqrelo_kernels::quantize_row, sign_dots, tables_bytes and make_tables for AVX-512 VNNI; they are in avx512vnni-signs.cpp.
void    quantize_row_avx512vnni(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act);
void    sign_dots_avx512vnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                             const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);
int64_t tables_bytes_avx512vnni(int64_t n);
void    make_tables_avx512vnni(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act);

// The same by tables, for CPUs with AVX-512 VBMI. Returns how many rows of q it has multiplied: fewer than n_t where there is no room for
// the tables of one. It is in avx512vbmi-signs.cpp.
int     sign_dots_avx512vbmi(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                             const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);
int64_t tables_bytes_avx512vbmi(int64_t n);
void    make_tables_avx512vbmi(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act);
