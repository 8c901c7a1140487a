// factor-kernels.h: dqrelo_kernels::dots and dqrelo_kernels::to_float, written once for all instruction sets but the scalar one.
//
// The file of an instruction set describes its vectors in a struct, ISA here, and makes both functions from it. The struct has these types
// and constants:
//
//   vectors      STEP neighbouring columns as F32
//   sums         one accumulator, whose lanes are added up at the end
//   STEP         the columns that are loaded at once; divides 32, which is the block of Q8_0 and Q4_0
//   MAX_T        the most rows of b that are multiplied at once
//   PREFETCH_T   with so many rows of b at once, or fewer, memory is the limit, so what will be read next is prefetched
//   f32, f16, bf16, q8_0, q4_0, f8   a struct for each storage type, with BYTES, the bytes of STEP columns rounded up, and
//       vectors at(const void * row, int64_t j, int64_t n)
//           columns j to j + STEP - 1 of a row, zeros from the n-th of them on, which are not read; j is a multiple of STEP
//
// and these functions:
//
//   int rows_at_once(int t, int n_t)   how many rows of b, 1 to MAX_T, to take together from row t of n_t on
//   int rows_of_a(int T)               how many rows of a to multiply with T rows of b at once: 4 or 8
//   void hold(vectors & v)             keeps v in registers, where the compiler would load it again for each use
//   sums zero()                        a sum of nothing
//   void add(sums & acc, const vectors & a, const vectors & b)          adds a b to acc, lane by lane
//   void store_totals(float * out, const sums (&four)[4], int n)        the lanes of each sum added up, or of the first n; n may be below 1
//   void store(float * out, const vectors & v, int64_t n)               the first n columns, at most STEP
//
// and for products: PRODUCTS_R, a multiple of 4, and PRODUCTS_T, the rows of a and b that are multiplied at once where both lie in a cache;
// PRODUCTS_COLUMNS, a multiple of STEP, so many of their columns as stay in the nearest cache;
//   void add_totals(float * out, const sums (&four)[4], int n, bool add)   as store_totals, or added to what is there
//
// and for products with sparse rows: LANES, of which lane l of an accumulator adds columns l, l + LANES, ... in order;
//   sums load_sums(const float * lanes)
//   vectors expand(const float *& values, const uint8_t * bits, int64_t j, int64_t n)   as f32::at, of the next values where bits j, ...
//   are
//       set; moves `values` behind them
//
// The files that include this are compiled with the flags of their instruction set. None of their code may be linked into the rest of the
// library, so all functions here are static, and the structs lie in unnamed namespaces.
#pragma once

#include "dqrelo-op.h"
#include "k-quants.h"
#include "kernels.h"
#include "prefetch.h"
#include "row-steps.h"
#include "unrolled.h"

template <class ISA, int R, int T>
static inline void set_zero(typename ISA::sums (&acc)[R][T]) {
    UNROLLED
    for (int r = 0; r < R; r++) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            acc[r][t] = ISA::zero();
        }
    }
}

// Adds a[r] b[t] to acc[r][t] for the columns of the step at j, of which n are there.
template <class ISA, class LOAD, int R, int T>
static inline void dots_step(typename ISA::sums (&acc)[R][T], const uint8_t * const * a, const float * const * b, int64_t j, int64_t n) {
    typename ISA::vectors b_step[T];
    UNROLLED
    for (int t = 0; t < T; t++) {
        b_step[t] = ISA::f32::at(b[t], j, n);
        ISA::hold(b_step[t]);
    }
    UNROLLED
    for (int r = 0; r < R; r++) {
        typename ISA::vectors a_step = LOAD::at(a[r], j, n);
        ISA::hold(a_step);
        UNROLLED
        for (int t = 0; t < T; t++) {
            ISA::add(acc[r][t], a_step, b_step[t]);
        }
    }
}

// Asks for BYTES of a from `next` on, or where those are behind the end of a, for what comes afterwards.
template <int BYTES>
static inline void prefetch_step(uintptr_t & next, uintptr_t end, struct dqrelo_ahead & ahead) {
    if (next < end) {
        prefetch_lines<BYTES>(next);
        next += BYTES;
    } else {
        prefetch_ahead<BYTES>(ahead);
    }
}

// Multiplies R rows of a with T rows of b, and stores the results of the first n_i rows of a, the last of which ends at `end`.
template <class ISA, class LOAD, int R, int T>
static inline void dots_tile(const uint8_t * const * a, uintptr_t end, int n_i, const float * const * b, int64_t n, float * out, int64_t ld,
                             struct dqrelo_ahead & ahead) {
    typename ISA::sums acc[R][T];
    set_zero<ISA>(acc);
    uintptr_t next = prefetch_from(a[0], (size_t) (R * (a[1] - a[0])));
    int64_t   j    = 0;
    for (; j + ISA::STEP <= n; j += ISA::STEP) {
        if (T <= ISA::PREFETCH_T) {
            prefetch_step<R * LOAD::BYTES>(next, end, ahead);
        }
        dots_step<ISA, LOAD, R, T>(acc, a, b, j, ISA::STEP);
    }
    if (j < n) {
        if (T <= ISA::PREFETCH_T) {
            prefetch_step<R * LOAD::BYTES>(next, end, ahead);
        }
        dots_step<ISA, LOAD, R, T>(acc, a, b, j, n - j);
    }
    UNROLLED
    for (int t = 0; t < T; t++) {
        UNROLLED
        for (int r = 0; r < R; r += 4) {
            const typename ISA::sums four[4] = { acc[r][t], acc[r + 1][t], acc[r + 2][t], acc[r + 3][t] };
            ISA::store_totals(out + t * ld + r, four, n_i - r);
        }
    }
}

// Multiplies all rows of a with T rows of b. It is never inlined: in one large function the compiler keeps fewer values in registers.
template <class ISA, class LOAD, int T>
static __attribute__((noinline)) void dots_rows(const void * a, int64_t a_stride, int n_i, const float * const * b, int64_t n, float * out,
                                                int64_t ld, struct dqrelo_ahead * after) {
    constexpr int       R     = ISA::rows_of_a(T);
    struct dqrelo_ahead ahead = *after; // A copy may stay in registers.
    for (int i = 0; i < n_i; i += R) {
        const uint8_t * row[R]; // Behind the end the last row is taken again.
        for (int r = 0; r < R; r++) {
            row[r] = (const uint8_t *) a + (i + r < n_i ? i + r : n_i - 1) * a_stride;
        }
        dots_tile<ISA, LOAD, R, T>(row, (uintptr_t) a + (uintptr_t) (n_i * a_stride), n_i - i, b, n, out + i, ld, ahead);
    }
    *after = ahead;
}

// Does the same with n_t <= T rows of b.
template <class ISA, class LOAD, int T>
static void dots_up_to(const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * out, int64_t ld,
                       struct dqrelo_ahead * ahead) {
    if constexpr (T > 1) {
        if (n_t < T) {
            dots_up_to<ISA, LOAD, T - 1>(a, a_stride, n_i, b, n_t, n, out, ld, ahead);
            return;
        }
    }
    dots_rows<ISA, LOAD, T>(a, a_stride, n_i, b, n, out, ld, ahead);
}

template <class ISA, class LOAD>
static void to_float_of(const void * src, int64_t n, float * out) {
    int64_t j = 0;
    for (; j + ISA::STEP <= n; j += ISA::STEP) {
        ISA::store(out + j, LOAD::at(src, j, ISA::STEP), ISA::STEP);
    }
    if (j < n) {
        ISA::store(out + j, LOAD::at(src, j, n - j), n - j);
    }
}

// Calls f with the loads of a storage type; not at all for a type that is none of ours.
template <class ISA, class F>
static inline void with_load(enum ggml_type type, F f) {
    switch (type) {
        case GGML_TYPE_F32: f(typename ISA::f32()); break;
        case GGML_TYPE_F16: f(typename ISA::f16()); break;
        case GGML_TYPE_BF16: f(typename ISA::bf16()); break;
        case GGML_TYPE_Q8_0: f(typename ISA::q8_0()); break;
        case GGML_TYPE_Q4_0: f(typename ISA::q4_0()); break;
        default: break;
    }
}

template <class ISA>
static void dots_of_isa(enum ggml_type type, const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n,
                        float * out, int64_t ld, struct dqrelo_ahead * ahead) {
    with_load<ISA>(type, [&](auto load) {
        for (int t = 0, n_step; t < n_t; t += n_step) {
            n_step = ISA::rows_at_once(t, n_t);
            dots_up_to<ISA, decltype(load), ISA::MAX_T>(a, a_stride, n_i, b + t, n_step, n, out + t * ld, ld, ahead);
        }
    });
}

//
// products of what lies in a cache
//

// Multiplies PRODUCTS_R rows of a with T rows of b, for the first n_i rows of a.
template <class ISA, int T>
static inline void products_tile(const uint8_t * const * a, int n_i, const float * const * b_rows, int64_t j0, int64_t n,
                                 float * const * out, int64_t i, bool add) {
    const float * b[T];
    for (int t = 0; t < T; t++) {
        b[t] = b_rows[t] + j0;
    }
    constexpr int      R = ISA::PRODUCTS_R;
    typename ISA::sums acc[R][T];
    set_zero<ISA>(acc);
    int64_t j = 0;
    for (; j + ISA::STEP <= n; j += ISA::STEP) {
        dots_step<ISA, typename ISA::f32, R, T>(acc, a, b, j, ISA::STEP);
    }
    if (j < n) {
        dots_step<ISA, typename ISA::f32, R, T>(acc, a, b, j, n - j);
    }
    UNROLLED
    for (int t = 0; t < T; t++) {
        UNROLLED
        for (int r = 0; r < R; r += 4) {
            const typename ISA::sums four[4] = { acc[r][t], acc[r + 1][t], acc[r + 2][t], acc[r + 3][t] };
            ISA::add_totals(out[t] + i + r, four, n_i - r, add);
        }
    }
}

template <class ISA>
static void products_of_isa(const float * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * const * out,
                            bool add) {
    for (int t0 = 0; t0 < n_t; t0 += DQRELO_CACHED_ROWS) {
        const int t1 = n_t - t0 < DQRELO_CACHED_ROWS ? n_t : t0 + DQRELO_CACHED_ROWS;
        for (int i = 0; i < n_i; i += ISA::PRODUCTS_R) {
            for (int64_t j = 0; j < n; j += ISA::PRODUCTS_COLUMNS) {
                const int64_t   n_j = n - j < ISA::PRODUCTS_COLUMNS ? n - j : ISA::PRODUCTS_COLUMNS;
                const uint8_t * row[ISA::PRODUCTS_R]; // Behind the end the last row is taken again.
                for (int r = 0; r < ISA::PRODUCTS_R; r++) {
                    row[r] = (const uint8_t *) (a + (i + r < n_i ? i + r : n_i - 1) * a_stride + j);
                }
                const uint8_t * const * a_rows = row;
                for_row_steps<ISA::PRODUCTS_T>(t0, t1, [=](auto rows, int t) {
                    products_tile<ISA, rows.value>(a_rows, n_i - i, b + t, j, n_j, out + t, i, add || j > 0);
                });
            }
        }
    }
}

//
// products of sparse rows
//

template <class ISA>
static void mask_products_of_isa(const float * const * values, const uint8_t * const * bits, int n_i, const float * b, int64_t n,
                                 float * out, bool add) {
    for (int i = 0; i < n_i; i += 4) {
        const float *   next[4]; // Behind the end the last row is taken again.
        const uint8_t * row[4];
        for (int r = 0; r < 4; r++) {
            next[r] = values[i + r < n_i ? i + r : n_i - 1];
            row[r]  = bits[i + r < n_i ? i + r : n_i - 1];
        }
        for (int64_t j0 = 0; j0 < n; j0 += ISA::PRODUCTS_COLUMNS) {
            const int64_t      end = n - j0 < ISA::PRODUCTS_COLUMNS ? n : j0 + ISA::PRODUCTS_COLUMNS;
            typename ISA::sums acc[4][1];
            set_zero<ISA>(acc);
            for (int64_t j = j0; j < end; j += ISA::STEP) {
                const typename ISA::vectors b_step = ISA::f32::at(b, j, end - j < ISA::STEP ? end - j : ISA::STEP);
                UNROLLED
                for (int r = 0; r < 4; r++) {
                    ISA::add(acc[r][0], ISA::expand(next[r], row[r], j, end), b_step);
                }
            }
            const typename ISA::sums four[4] = { acc[0][0], acc[1][0], acc[2][0], acc[3][0] };
            ISA::add_totals(out + i, four, n_i - i, add || j0 > 0);
        }
    }
}

// Adds the products of a row's values in the blocks of columns j0 to before end, which are the next ones, to lanes.
template <class ISA>
static inline void add_lists(const float *& values, const uint8_t *& column, const uint8_t * count, const float * b, int64_t j0,
                             int64_t end, float * lanes) {
    for (int64_t j = j0; j < end; j += DQRELO_SPARSE_BLOCK) {
        const int n = count[j / DQRELO_SPARSE_BLOCK];
        for (int k = 0; k < n; k++) {
            const int c           = column[k];
            lanes[c % ISA::LANES] = __builtin_fmaf(values[k], b[j + c], lanes[c % ISA::LANES]);
        }
        values += n;
        column += n;
    }
}

template <class ISA>
static void list_products_of_isa(const float * const * values, const uint8_t * const * column, const uint8_t * const * count, int n_i,
                                 const float * b, int64_t n, float * out, bool add) {
    for (int i = 0; i < n_i; i += 4) {
        const int       n_rows = n_i - i < 4 ? n_i - i : 4;
        const float *   next[4];
        const uint8_t * place[4];
        for (int r = 0; r < n_rows; r++) {
            next[r]  = values[i + r];
            place[r] = column[i + r];
        }
        for (int64_t j0 = 0; j0 < n; j0 += ISA::PRODUCTS_COLUMNS) {
            const int64_t      end                  = n - j0 < ISA::PRODUCTS_COLUMNS ? n : j0 + ISA::PRODUCTS_COLUMNS;
            float              lanes[4][ISA::LANES] = {};
            typename ISA::sums four[4];
            for (int r = 0; r < n_rows; r++) {
                add_lists<ISA>(next[r], place[r], count[i + r], b, j0, end, lanes[r]);
            }
            for (int r = 0; r < 4; r++) {
                four[r] = ISA::load_sums(lanes[r]);
            }
            ISA::add_totals(out + i, four, n_rows, add || j0 > 0);
        }
    }
}

template <class ISA>
static void to_float_of_isa(enum ggml_type type, const void * src, int64_t n, float * out) {
    if (type == GGML_TYPE_I8) { // No products have this type.
        to_float_of<ISA, typename ISA::f8>(src, n, out);
        return;
    }
    if (dqrelo_is_k_quant(type)) {
        k_quant_to_float(type, src, n, out);
        return;
    }
    with_load<ISA>(type, [&](auto load) { to_float_of<ISA, decltype(load)>(src, n, out); });
}
