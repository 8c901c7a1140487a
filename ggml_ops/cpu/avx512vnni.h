// avx512vnni.h: what avx512vnni.cpp and avx512vnni-signs.cpp share.
#pragma once

#include "kernels.h"
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

// dqrelo_kernels::quantize_row and sign_dots for AVX-512 VNNI; they are in avx512vnni-signs.cpp.
void quantize_row_avx512vnni(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act);
void sign_dots_avx512vnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                          const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);
