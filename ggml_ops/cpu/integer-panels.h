// integer-panels.h: dqrelo_kernels::products_i16 as panels (panel-kernels.h), for instruction sets that add two neighbouring products of 16
// bits. Two columns of a row, a pair, are what one column is there: a lane of 32 bits has a row's sum.
//
// The struct of an instruction set, ISA here, has, beside what it has for panels of F32:
//
//   counts                                 an accumulator of LANES lanes of 32 bits
//   counts no_counts()                     a sum of nothing
//   counts load_pairs(const int32_t * q)   LANES pairs
//   counts broadcast_pair(int32_t pair)         one in all lanes
//   void hold(counts & v)                  keeps v in a register
//   void add(counts & acc, const counts & a, const counts & b)    adds both products of two pairs, lane by lane
//   sums to_sums(const counts & acc)
//   sums add_sums(const sums & a, const sums & b)
//   sums load_steps(const float * v, int n)     the first n of LANES values
//   sums scaled(const sums & v, const sums & a_step, float b_step)
#pragma once

#include "panel-kernels.h"

#include <cstring>

// A lane has room for so many pairs, whose sum is exact.
static constexpr int INTEGER_PANEL_EXACT = 64;

static inline int32_t load_pair(const int16_t * q) {
    int32_t pair;
    memcpy(&pair, q, sizeof(pair));
    return pair;
}

// Multiplies a panel of n pairs with T rows of b, which lie from column j0 on.
template <class ISA, int T>
static inline void integer_panel_tile(const int32_t * panel, const float * a_step, int n_i, const int16_t * const * b_rows,
                                      const float * b_step, int64_t j0, int64_t n, float * const * out, int64_t i, bool add) {
    const int16_t *    b[T];
    typename ISA::sums total[2][T];
    UNROLLED
    for (int t = 0; t < T; t++) {
        b[t]        = b_rows[t] + j0;
        total[0][t] = ISA::zero();
        total[1][t] = ISA::zero();
    }
    for (int64_t p0 = 0; p0 < n; p0 += INTEGER_PANEL_EXACT) {
        const int64_t        p1 = n - p0 < INTEGER_PANEL_EXACT ? n : p0 + INTEGER_PANEL_EXACT;
        typename ISA::counts acc[2][T];
        UNROLLED
        for (int t = 0; t < T; t++) {
            acc[0][t] = ISA::no_counts();
            acc[1][t] = ISA::no_counts();
        }
        for (int64_t p = p0; p < p1; p++, panel += 2 * ISA::LANES) {
            typename ISA::counts a0 = ISA::load_pairs(panel), a1 = ISA::load_pairs(panel + ISA::LANES);
            ISA::hold(a0);
            ISA::hold(a1);
            UNROLLED
            for (int t = 0; t < T; t++) {
                typename ISA::counts b_p = ISA::broadcast_pair(load_pair(b[t] + 2 * p));
                ISA::hold(b_p);
                ISA::add(acc[0][t], a0, b_p);
                ISA::add(acc[1][t], a1, b_p);
            }
        }
        UNROLLED
        for (int t = 0; t < T; t++) {
            total[0][t] = ISA::add_sums(total[0][t], ISA::to_sums(acc[0][t]));
            total[1][t] = ISA::add_sums(total[1][t], ISA::to_sums(acc[1][t]));
        }
    }
    const typename ISA::sums step0 = ISA::load_steps(a_step, n_i), step1 = ISA::load_steps(a_step + ISA::LANES, n_i - ISA::LANES);
    UNROLLED
    for (int t = 0; t < T; t++) {
        ISA::add_first(out[t] + i, ISA::scaled(total[0][t], step0, b_step[t]), n_i, add);
        ISA::add_first(out[t] + i + ISA::LANES, ISA::scaled(total[1][t], step1, b_step[t]), n_i - ISA::LANES, add);
    }
}

template <class ISA>
static void integer_panel_products(const int16_t * a, int64_t a_stride, const float * a_step, int n_i, const int16_t * const * b,
                                   const float * b_step, int n_t, int64_t n, float * const * out, bool add) {
    // What lies behind n columns of a row up to a whole DQRELO_I16_BLOCK is zeros, so a last column has one beside it.
    const int64_t n_pairs = (n + 1) / 2;
    // Pairs are only moved, so what they are as floats does not matter.
    for_panels<ISA>((const float *) a, a_stride / 2, n_i, n_pairs, [=](const float * panel, int i, int left, int64_t p, int64_t n_p) {
        const int32_t * pairs = (const int32_t *) panel;
        const float *   steps = a_step + i;
        for_row_steps<ISA::PANEL_T>(0, n_t, [=](auto rows, int t) {
            integer_panel_tile<ISA, rows.value>(pairs, steps, left, b + t, b_step + t, 2 * p, n_p, out + t, i, add || p > 0);
        });
    });
}
