// integer-kernels.h: dqrelo_kernels::products_i16, written once for the instruction sets that add two neighbouring products of 16 bits.
//
// The file of an instruction set describes its vectors in a struct, ISA here, which has these types and constants:
//
//   integers     I16_STEP neighbouring columns as 16 bits; I16_STEP divides DQRELO_I16_BLOCK
//   counts       an accumulator of 32 bits a lane: of I16_COLUMNS columns, a lane adds no more than 128
//   sums         the same as F32, as in factor-kernels.h
//   I16_R, I16_T the rows of a, a multiple of 4, and of b that are multiplied at once where both lie in a cache
//
// and these functions:
//
//   integers load(const int16_t * q)
//   void hold(integers & v)                  keeps v in registers; integers and counts are one type
//   counts no_counts()                       a sum of nothing
//   void add(counts & acc, const integers & a, const integers & b)     adds the products of two columns to each lane
//   sums to_sums(const counts & acc)
//   void add_scaled(float * out, const sums (&four)[4], const float * a_step, float b_step, int n, bool add)
//       sets the first n of four values to a step of a times b_step times a sum's lanes added up, or adds that to them
#pragma once

#include "kernels.h"
#include "row-steps.h"
#include "unrolled.h"

// Multiplies I16_R rows of a with T rows of b, for the first n_i rows of a.
template <class ISA, int T>
static inline void products_i16_tile(const int16_t * const * a, const float * a_step, int n_i, const int16_t * const * b_rows,
                                     const float * b_step, int64_t j0, int64_t n, float * const * out, int64_t i, bool add) {
    constexpr int        R = ISA::I16_R;
    const int16_t *      b[T];
    typename ISA::counts acc[R][T];
    UNROLLED
    for (int t = 0; t < T; t++) {
        b[t] = b_rows[t] + j0;
        UNROLLED
        for (int r = 0; r < R; r++) {
            acc[r][t] = ISA::no_counts();
        }
    }
    for (int64_t j = 0; j < n; j += ISA::I16_STEP) {
        typename ISA::integers b_j[T];
        UNROLLED
        for (int t = 0; t < T; t++) {
            b_j[t] = ISA::load(b[t] + j);
            ISA::hold(b_j[t]);
        }
        UNROLLED
        for (int r = 0; r < R; r++) {
            typename ISA::integers a_j = ISA::load(a[r] + j);
            ISA::hold(a_j);
            UNROLLED
            for (int t = 0; t < T; t++) {
                ISA::add(acc[r][t], a_j, b_j[t]);
            }
        }
    }
    // Without this GCC 12 keeps what the sums become beside what they were, half of it in memory, which takes twice the time.
    UNROLLED
    for (int t = 0; t < T; t++) {
        UNROLLED
        for (int r = 0; r < R; r++) {
            ISA::hold(acc[r][t]);
        }
    }
    UNROLLED
    for (int t = 0; t < T; t++) {
        UNROLLED
        for (int r = 0; r < R; r += 4) {
            const typename ISA::sums four[4] = { ISA::to_sums(acc[r][t]), ISA::to_sums(acc[r + 1][t]), ISA::to_sums(acc[r + 2][t]),
                                                 ISA::to_sums(acc[r + 3][t]) };
            ISA::add_scaled(out[t] + i + r, four, a_step + r, b_step[t], n_i - r, add);
        }
    }
}

template <class ISA>
static void products_i16_of_isa(const int16_t * a, int64_t a_stride, const float * a_step, int n_i, const int16_t * const * b,
                                const float * b_step, int n_t, int64_t n, float * const * out, bool add) {
    constexpr int R = ISA::I16_R;
    for (int t0 = 0; t0 < n_t; t0 += DQRELO_CACHED_ROWS) {
        const int t1 = n_t - t0 < DQRELO_CACHED_ROWS ? n_t : t0 + DQRELO_CACHED_ROWS;
        for (int i = 0; i < n_i; i += R) {
            for (int64_t j = 0; j < n; j += ISA::I16_COLUMNS) {
                const int64_t   n_j = n - j < ISA::I16_COLUMNS ? n - j : ISA::I16_COLUMNS;
                const int16_t * row[R]; // Behind the end the last row is taken again.
                float           step[R];
                for (int r = 0; r < R; r++) {
                    const int k = i + r < n_i ? i + r : n_i - 1;
                    row[r]      = a + k * a_stride + j;
                    step[r]     = a_step[k];
                }
                const int16_t * const * a_rows = row;
                const float *           steps  = step;
                for_row_steps<ISA::I16_T>(t0, t1, [=](auto rows, int t) {
                    products_i16_tile<ISA, rows.value>(a_rows, steps, n_i - i, b + t, b_step + t, j, n_j, out + t, i, add || j > 0);
                });
            }
        }
    }
}
