// panel-kernels.h: dqrelo_kernels::tile_products, written once for the instruction sets of x86.
//
// Rows of a become panels, in which those of one column are neighbours, so that a lane has a row's sum and nothing is added up across
// lanes:
//
//   a  row 0  | a00 a01 a02 .. |          panel  column 0 | a00 a10 a20 .. |   x  b[t][0] in all lanes
//      row 1  | a10 a11 a12 .. |    =>           column 1 | a01 a11 a21 .. |   x  b[t][1]
//      row 2  | a20 a21 a22 .. |                 column 2 | a02 a12 a22 .. |   x  b[t][2]
//
// A panel is made for each call, so calls should have many rows of b. The struct of an instruction set, ISA here, has, beside what it has
// for factor-kernels.h (sums, LANES, zero, load_sums):
//
//   PANEL_T                                         the rows of b, each with two accumulators, that are multiplied at once
//   sums broadcast(const float * v)                 v in all lanes
//   void hold(sums & v)                             keeps v in a register
//   void add_product(sums & acc, const sums & a, const sums & b)    adds a b to acc, lane by lane
//   void add_first(float * out, const sums & v, int n, bool add)    sets the first n values, or adds v to them; n may be below 1
#pragma once

#include "kernels.h"
#include "row-steps.h"
#include "unrolled.h"

#include <cstring>
#include <immintrin.h>

// A sum of so many columns is made in one lane, as in ggml's own products of 2048 columns with AVX2, and then added to the others.
static constexpr int PANEL_COLUMNS = 256;

// Writes columns j to j + 7 of 8 rows as 8 columns, which are `stride` values apart.
static inline void transpose_8x8(const float * const * row, int64_t j, float * out, int stride) {
    __m256 pairs[8], fours[8];
    UNROLLED
    for (int k = 0; k < 8; k += 2) {
        const __m256 v0 = _mm256_loadu_ps(row[k] + j), v1 = _mm256_loadu_ps(row[k + 1] + j);
        pairs[k]     = _mm256_unpacklo_ps(v0, v1);
        pairs[k + 1] = _mm256_unpackhi_ps(v0, v1);
    }
    UNROLLED
    for (int k = 0; k < 8; k += 4) {
        fours[k]     = _mm256_shuffle_ps(pairs[k], pairs[k + 2], 0x44);
        fours[k + 1] = _mm256_shuffle_ps(pairs[k], pairs[k + 2], 0xee);
        fours[k + 2] = _mm256_shuffle_ps(pairs[k + 1], pairs[k + 3], 0x44);
        fours[k + 3] = _mm256_shuffle_ps(pairs[k + 1], pairs[k + 3], 0xee);
    }
    UNROLLED
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps(out + k * stride, _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x20));
        _mm256_storeu_ps(out + (k + 4) * stride, _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x31));
    }
}

// Sets panel to n columns of n_i rows of a, and to zeros in the lanes behind those rows.
template <class ISA>
static inline void make_panel(const float * a, int64_t a_stride, int n_i, int64_t n, float * panel) {
    constexpr int R = 2 * ISA::LANES;
    for (int i = 0; i < R; i += 8) {
        int64_t j = 0;
        if (i + 8 <= n_i) {
            const float * row[8];
            for (int k = 0; k < 8; k++) {
                row[k] = a + (i + k) * a_stride;
            }
            for (; j + 8 <= n; j += 8) {
                transpose_8x8(row, j, panel + j * R + i, R);
            }
        }
        for (; j < n; j++) {
            for (int k = i; k < i + 8; k++) {
                panel[j * R + k] = 0.0f;
                if (k < n_i) {
                    memcpy(&panel[j * R + k], a + k * a_stride + j, sizeof(float)); // It may be a pair of integers (integer-panels.h).
                }
            }
        }
    }
}

// Multiplies a panel of n columns, from column j0 of b on, with T rows of b.
template <class ISA, int T>
static inline void panel_tile(const float * panel, int n_i, const float * const * b_rows, int64_t j0, int64_t n, float * const * out,
                              int64_t i, bool add) {
    const float *      b[T];
    typename ISA::sums acc[2][T];
    UNROLLED
    for (int t = 0; t < T; t++) {
        b[t]      = b_rows[t] + j0;
        acc[0][t] = ISA::zero();
        acc[1][t] = ISA::zero();
    }
    for (int64_t j = 0; j < n; j++, panel += 2 * ISA::LANES) {
        typename ISA::sums a0 = ISA::load_sums(panel), a1 = ISA::load_sums(panel + ISA::LANES);
        ISA::hold(a0);
        ISA::hold(a1);
        UNROLLED
        for (int t = 0; t < T; t++) {
            typename ISA::sums b_j = ISA::broadcast(b[t] + j);
            ISA::hold(b_j);
            ISA::add_product(acc[0][t], a0, b_j);
            ISA::add_product(acc[1][t], a1, b_j);
        }
    }
    UNROLLED
    for (int t = 0; t < T; t++) {
        ISA::add_first(out[t] + i, acc[0][t], n_i, add);
        ISA::add_first(out[t] + i + ISA::LANES, acc[1][t], n_i - ISA::LANES, add);
    }
}

// Makes panels of a's n_i rows and n columns, one after the other. `multiply(panel, i, left, j, n_j)` multiplies one of `left` rows from
// row i on, and of n_j columns from column j on.
template <class ISA, class F>
static inline void for_panels(const float * a, int64_t a_stride, int n_i, int64_t n, const F & multiply) {
    constexpr int     R = 2 * ISA::LANES;
    alignas(64) float panel[PANEL_COLUMNS * R];
    for (int64_t j = 0; j < n; j += PANEL_COLUMNS) {
        const int64_t n_j = n - j < PANEL_COLUMNS ? n - j : PANEL_COLUMNS;
        for (int i = 0; i < n_i; i += R) {
            const int left = n_i - i < R ? n_i - i : R;
            make_panel<ISA>(a + i * a_stride + j, a_stride, left, n_j, panel);
            multiply(panel, i, left, j, n_j);
        }
    }
}

template <class ISA>
static void tile_products_of_isa(const float * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n,
                                 float * const * out, bool add) {
    for_panels<ISA>(a, a_stride, n_i, n, [=](const float * panel, int i, int left, int64_t j, int64_t n_j) {
        for_row_steps<ISA::PANEL_T>(
            0, n_t, [=](auto rows, int t) { panel_tile<ISA, rows.value>(panel, left, b + t, j, n_j, out + t, i, add || j > 0); });
    });
}
