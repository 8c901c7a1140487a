// kernels.h: the inner functions of the op DQRELO on a CPU, one table of them for each instruction set (scalar.cpp is the definition).
//
// No function here needs ggml at link time, and every result of a row is computed by the same arithmetic in the same order whatever
// other rows are given with it: a row's value does not depend on its batch or on the number of threads.
#pragma once

#include "factor-types.h"

#include <stddef.h>
#include <stdint.h>

// A quantised activation row: x_j * c_j ~ d * q_j, |q_j| <= dqrelo_q_max(n). q is kept as two bytes, q = 256 * hi + lo with
// -128 <= hi, lo <= 127, because byte products are the cheapest ones of every instruction set. They lie in blocks of 64 columns,
// with zeros after the last column:
//
//   byte   0..63         64..127       128..191      ...
//          hi 0..63      lo 0..63      hi 64..127    ...
//
// Where a set of kernels interleaves q, byte 8 k + l of a block is that of its column 8 l + k.
#define DQRELO_Q_BLOCK 64

// Each has a cache line of its own, because different threads quantise different rows.
struct alignas(64) dqrelo_act {
    float        d;      // step; 0 for a row of zeros, NaN where x has NaN or infinity
    int32_t      sum;    // sum of all q_j
    const void * tables; // what make_tables made of the row, or NULL
};

static inline int64_t dqrelo_q_bytes(int64_t n) {
    return (n + DQRELO_Q_BLOCK - 1) / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK);
}

// Returns where the hi of column j lies; its lo lies DQRELO_Q_BLOCK behind.
static inline int64_t dqrelo_q_place(bool interleaves, int64_t j) {
    const int64_t column = j % DQRELO_Q_BLOCK;
    return j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + (interleaves ? column % 8 * 8 + column / 8 : column);
}

// 32639 is the largest q whose hi byte fits (127 * 256 + 127). Longer rows take a smaller range, so that a sum of n terms fits
// in 32 bits and all integer arithmetic is exact.
static inline DQRELO_DEVICE int32_t dqrelo_q_max(int64_t n) {
    const int32_t fit = INT32_MAX / (int32_t) (n > 0 ? n : 1); // no row has 2^31 values, and 64 bits are a slow division on a GPU
    return fit < 32639 ? fit : 32639;
}

// What dqrelo_kernels::add_delta makes one output row of, n_i output features each.
struct dqrelo_parts {
    int             n_planes;
    const int32_t * isum[4];       // [n_i] sum_j s_ij q_j
    const float *   scale[4];      // [n_i] where scale_step is 1, else [1]
    int             scale_step[4]; // 0 or 1
    const float *   uv;            // [n_i] or NULL
    const int32_t * zsum;          // [n_i] sum_c us_ic zq_c of sign factors, or NULL
    float           d;             // step of the quantised activation
    float           dz;            // step of zq
    float           s;             // request scale
};

static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// The addresses of what the caller will read next. While a kernel multiplies, it asks for cache lines from `next` on, in small steps, and
// moves `next` on, until it is `end` or a little behind it: signs are multiplied more slowly than memory could bring them, and where a
// kernel comes to the end of its matrix, there is nothing else left to ask for.
struct dqrelo_ahead {
    uintptr_t next, end;
};

// A tile of signs and what its products are written to: n_i rows of n/8 bytes; out[t*ld + i] becomes sum_j s_ij q_tj. They are rows `row`
// and following of a matrix of n_rows. Where that is transposed (transposed-signs.h) a tile has whole groups of rows, and maybe those that
// the matrix has left over, and `sign` is where its first row would lie else.
struct dqrelo_sign_tile {
    const uint8_t * sign;
    int             n_i;
    int32_t *       out;
    bool            transposed;
    int64_t         row, n_rows; // where it is
};

#define DQRELO_EXPAND_BEHIND 16

// How many rows, at most, and output features are handled at once, and how many products a tile has at most, of whatever form. This bounds
// the scratch memory and never changes a result.
#define DQRELO_TILE_T 50 // It is two rows, and then sixteen times the three that the kernels take at once.
#define DQRELO_TILE_I 256
#define DQRELO_TILE (DQRELO_TILE_T * DQRELO_TILE_I)

// Rows b of products that are multiplied before the next ones: 2048 columns of them and 64 rows a fit into a cache of the second level.
#define DQRELO_CACHED_ROWS 48

// Integers of 16 bits take half of the instructions that F32 takes, where two neighbouring products are added in one. A lane of 32 bits has
// room for the sum of 128 products of these.
#define DQRELO_I16_MAX 4095
#define DQRELO_I16_COLUMNS 2048
#define DQRELO_I16_BLOCK 32

// Returns how many values a row of n has with the zeros behind them, and in how many pieces it is quantised, which have a step each.
static inline int64_t dqrelo_i16_values(int64_t n) {
    return (n + DQRELO_I16_BLOCK - 1) / DQRELO_I16_BLOCK * DQRELO_I16_BLOCK;
}
static inline int64_t dqrelo_i16_pieces(int64_t n) {
    return (n + DQRELO_I16_COLUMNS - 1) / DQRELO_I16_COLUMNS;
}

// What the bits of the largest magnitude say about the integers: v becomes v * inverse, rounded to nearest even, or all of them 0.
struct dqrelo_i16_scaling {
    float inverse, step;
    bool  is_zero;
};

static inline struct dqrelo_i16_scaling dqrelo_i16_scaling_of(uint32_t max_bits) {
    const float v_max = dqrelo_f32_from_bits(max_bits);
    const float inv   = (float) DQRELO_I16_MAX / v_max;
    if (max_bits >= 0x7f800000) {
        return { inv, dqrelo_f32_from_bits(0x7fc00000), true };
    }
    if (dqrelo_f32_bits(inv) >= 0x7f800000) { // as in quantize_row of scalar.cpp
        return { inv, 0.0f, true };
    }
    return { inv, v_max / (float) DQRELO_I16_MAX, false };
}

struct dqrelo_kernels {
    const char * name;

    // Whether q is interleaved.
    bool interleaves;

    // Whether signs are multiplied so much more slowly than memory brings them that V is best brought meanwhile
    // (dqrelo_matmul_factor_early).
    bool multiplies_early;

    // Whether sign_dots takes transposed tiles.
    bool takes_transposed;

    // How many rows of q, more than one, and rows of signs are best multiplied at once: at most DQRELO_TILE_T and DQRELO_TILE products.
    int tile_t, tile_i;

    // Computes q and act from a row x [n]; cscale is [n] or NULL. q has dqrelo_q_bytes(n) bytes. act->tables is NULL.
    void (*quantize_row)(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act);

    // Multiplies each tile with the same q, exactly. q are n_t rows, q_stride bytes apart. What follows the tiles in memory is taken to be
    // what the next call reads, and asked for: as many rows again of the first tile, and so on.
    void (*sign_dots)(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                      int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead);

    // Makes what sign_dots looks up for a row of q alone, whatever the signs are, in memory of tables_bytes(n) that begins at a cache line,
    // and sets act->tables to it. Without it sign_dots makes that in each of its calls. It leaves act as it is where the row allows no
    // tables. tables_bytes is NULL where there are none.
    int64_t (*tables_bytes)(int64_t n);
    void (*make_tables)(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act);

    // Sets out[t*ld + i] to sum_j a_ij b_tj in F32. a are n_i rows of `type`, a_stride bytes apart, b pointers to n_t rows.
    void (*dots)(enum ggml_type type, const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * out,
                 int64_t ld, struct dqrelo_ahead * ahead);

    // Sets dst[i] to y[i] + s * (sum_p d scale_p[i] isum_p[i] + uv[i] + dz zsum[i]); dst may be y.
    void (*add_delta)(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts);

    // Sets out[j] to value j of n contiguous values of `type`; n is a multiple of the type's block. I8 are F8, the upper bytes of F16. Of
    // K-quants it knows those of k-quants.h.
    void (*to_float)(enum ggml_type type, const void * src, int64_t n, float * out);

    // Adds s_j * scale * c_j to w[j] for n signs, a multiple of 8; c is cscale, or all ones where that is NULL.
    void (*fold_signs)(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n);

    // Sets out[t][i] to sum_j a_ij b_tj in F32, or adds that to it. a are n_i rows, a_stride values apart, b and out pointers to n_t rows.
    void (*products)(const float * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * const * out,
                     bool add);

    // The same of the rows of a tile that stays in a cache while many rows b are multiplied with it. Sums are made in the sequence that is
    // the quickest, which need not be that of products.
    void (*tile_products)(const float * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * const * out,
                          bool add);

    // Sets q to the integers nearest to v / step, |q_j| <= DQRELO_I16_MAX, and zeros behind them up to a multiple of DQRELO_I16_BLOCK. step
    // is NaN where v has NaN or infinity, and 0 where it has zeros alone; q are zeros then. q may lie where v does. n is at most
    // DQRELO_I16_COLUMNS.
    void (*quantize_i16)(const float * v, int64_t n, void * q, float * step);

    // As tile_products, of such integers: sets out[t][i] to a_step[i] b_step[t] sum_j a_ij b_tj, or adds that to it. NULL where it takes no
    // less time than that. a_stride is in values. The sum is exact in each lane, then it is added up in F32.
    void (*products_i16)(const int16_t * a, int64_t a_stride, const float * a_step, int n_i, const int16_t * const * b,
                         const float * b_step, int n_t, int64_t n, float * const * out, bool add);

    // Returns how many of n bits, a multiple of 8, are set.
    int64_t (*count_bits)(const uint8_t * bits, int64_t n);

    // Sets out[j] to the next one of `values` where bit j is set, and to 0 elsewhere, for n bits, a multiple of 8. Reads up to
    // DQRELO_EXPAND_BEHIND values behind the last one that it needs.
    void (*expand)(const float * values, const uint8_t * bits, int64_t n, float * out);

    // As products with one row b, of n_i <= DQRELO_SPARSE_TILE_I rows that are not written out: values[i] are those of row i where its bit
    // is set, with DQRELO_EXPAND_BEHIND more behind them. Sums have the same bits, where b is finite: what is multiplied with 0 is left
    // out.
    void (*mask_products)(const float * const * values, const uint8_t * const * bits, int n_i, const float * b, int64_t n, float * out,
                          bool add);

    // The same of rows whose values lie at columns that lists say: column[i] of row i, count[i][k] of them in block k.
    void (*list_products)(const float * const * values, const uint8_t * const * column, const uint8_t * const * count, int n_i,
                          const float * b, int64_t n, float * out, bool add);
};

extern const struct dqrelo_kernels dqrelo_kernels_scalar;
extern const struct dqrelo_kernels dqrelo_kernels_avxvnni;
extern const struct dqrelo_kernels dqrelo_kernels_avx2;
extern const struct dqrelo_kernels dqrelo_kernels_avx512vnni;
extern const struct dqrelo_kernels dqrelo_kernels_neon;

// Returns the best table that this CPU runs, or the one that the environment variable DQRELO_ISA names. It is chosen once.
const struct dqrelo_kernels * dqrelo_cpu_kernels(void);

// Lists the tables built into this library that this CPU runs, best first, and returns how many they are.
int dqrelo_cpu_kernels_all(const struct dqrelo_kernels ** list, int n_max);
