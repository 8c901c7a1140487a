// factor-tiles.cuh: products with U, V and dense deltas in tiles of 64 features by 32 rows. 128 threads compute a tile, a warp 16 features
// of it.
//
// F16 factors are multiplied on tensor cores. An F32 row b is cut into two F16 values an element, b = scale (hi + lo), which keeps 22 bits
// of it: products and their sums are as exact as in F32. The scale is a power of two, so that the row's largest element is at least 2^14
// and less than 2^15: none is too large for F16, and what is too small for it does not count. Other types are multiplied in F32, without
// tensor cores.
#pragma once

#include "mma.cuh"
#include "sort.cuh"
#include "values.cuh"

static constexpr int TILE_OUTPUTS = 64;
static constexpr int N_TILES      = TILE_ROWS / 8;      // A warp computes one mma for each.
static constexpr int DEPTH        = 32;                 // columns of F32 that are taken at once
static constexpr int HALF_DEPTH   = 64;                 // columns of F16 that are taken at once
static constexpr int HALF_WORDS   = HALF_DEPTH / 2 + 4; // The extra words keep rows in different banks.

struct tile_memory {
    union {
        int4 q[TILE_ROWS][17]; // A row has the signs of a piece of 128 columns; the 17th vector keeps rows in different banks.
        struct {
            float a[DEPTH][TILE_OUTPUTS + 1];
            float b[DEPTH][TILE_ROWS + 1];
        } floats;
        struct {
            uint32_t a[TILE_OUTPUTS][HALF_WORDS];
            uint32_t b[2][TILE_ROWS][HALF_WORDS]; // [0] has the hi bytes, [1] the lo bytes.
        } halves;
    };
};

// These say where a thread's values of a tile are: it has features tile_feature(0) and tile_feature(1) of rows tile_row(n, 0) and
// tile_row(n, 1), for all n. These are the places of mma.cuh.
static __device__ __forceinline__ int tile_feature(int i) {
    return (int) threadIdx.x / WARP * 16 + (int) threadIdx.x % WARP / 4 + 8 * i;
}
static __device__ __forceinline__ int tile_row(int n, int i) {
    return 8 * n + (int) threadIdx.x % 4 * 2 + i;
}

// The rows of a matrix that a tile needs, as one factor of a product.
struct tile_matrix {
    const uint8_t * first; // Points to the row of the tile's first feature.
    int64_t         row_bytes;
    int32_t         type;
    int             n_features; // Counts from the first on, and may be any number.
    int             n;          // number of columns

    __device__ __forceinline__ tile_matrix(const void * first, int32_t type, int n_features, int n) :
        first((const uint8_t *) first), row_bytes(dqrelo_type_bytes((ggml_type) type, n)), type(type), n_features(n_features), n(n) {}
    __device__ __forceinline__ const uint8_t * row(int i) const { return first + i * row_bytes; }
};

//
// F32
//

// Loads columns j0 to j0 + DEPTH - 1 of the rows of `range`, which have n columns.
template <typename B>
static __device__ __forceinline__ void load_float_rows(tile_memory & memory, int n, const tile_range & range, B b_row, int j0) {
    const int j = j0 + (int) threadIdx.x % DEPTH;
    for (int r = (int) threadIdx.x / DEPTH; r < TILE_ROWS; r += N_THREADS / DEPTH) {
        memory.floats.b[j - j0][r] = j < n && r >= range.begin && r < range.end ? b_row(r)[j] : 0.0f;
    }
}

// Adds the products of what is loaded.
static __device__ __forceinline__ void multiply_floats(const tile_memory & memory, float sum[N_TILES][4]) {
#pragma unroll 4
    for (int k = 0; k < DEPTH; k++) {
        const float a0 = memory.floats.a[k][tile_feature(0)];
        const float a1 = memory.floats.a[k][tile_feature(1)];
#pragma unroll
        for (int t = 0; t < N_TILES; t++) {
            const float b0 = memory.floats.b[k][tile_row(t, 0)];
            const float b1 = memory.floats.b[k][tile_row(t, 1)];
            sum[t][0]      = fmaf(a0, b0, sum[t][0]);
            sum[t][1]      = fmaf(a0, b1, sum[t][1]);
            sum[t][2]      = fmaf(a1, b0, sum[t][2]);
            sum[t][3]      = fmaf(a1, b1, sum[t][3]);
        }
    }
}

// Adds a . b_row(r) to sum[n][c] for the tile's features and the rows r of `range`.
template <typename B>
static __device__ __forceinline__ void add_float_tile(tile_memory & memory, const tile_matrix & a, const tile_range & range, B b_row,
                                                      float sum[N_TILES][4]) {
    for (int j0 = 0; j0 < a.n; j0 += DEPTH) {
        __syncthreads();
        const int j = j0 + (int) threadIdx.x % DEPTH;
        for (int i = (int) threadIdx.x / DEPTH; i < TILE_OUTPUTS; i += N_THREADS / DEPTH) {
            memory.floats.a[j - j0][i] = j < a.n && i < a.n_features ? value_of(a.type, a.row(i), j) : 0.0f;
        }
        load_float_rows(memory, a.n, range, b_row, j0);
        __syncthreads();
        multiply_floats(memory, sum);
    }
}

//
// F16
//

// Returns what a row is multiplied with before it is cut in two. It is 2^14 over the power of two of the row's largest magnitude, whose
// bits are given, and its inverse is a normal number too.
static __device__ __forceinline__ float half_factor(int32_t max_bits) {
    return __int_as_float(min(268 - (max_bits >> 23), 253) << 23);
}
static __device__ __forceinline__ float inverse_of_half_factor(float factor) {
    return __int_as_float((254 << 23) - __float_as_int(factor));
}

// Puts two neighbours into a word, as F16.
static __device__ __forceinline__ uint32_t half_pair(float v0, float v1) {
    return (uint32_t) __half_as_ushort(__float2half(v0)) | (uint32_t) __half_as_ushort(__float2half(v1)) << 16;
}
static __device__ __forceinline__ float2 pair_values(uint32_t word) {
    return make_float2(half_bits((uint16_t) (word & 0xffff)), half_bits((uint16_t) (word >> 16)));
}

static __device__ __forceinline__ void load_half_features(tile_memory & memory, const tile_matrix & a, int j0) {
    if (((uintptr_t) a.first | (uintptr_t) a.row_bytes) % 16 == 0 && j0 + HALF_DEPTH <= a.n) {
        for (int k = (int) threadIdx.x; k < TILE_OUTPUTS * (HALF_DEPTH / 8); k += N_THREADS) {
            const int i = k / (HALF_DEPTH / 8), vector = k % (HALF_DEPTH / 8);
            *(uint4 *) (memory.halves.a[i] + 4 * vector) =
                i < a.n_features ? ((const uint4 *) (a.row(i) + 2 * j0))[vector] : make_uint4(0, 0, 0, 0);
        }
        return;
    }
#pragma unroll 2
    for (int k = (int) threadIdx.x; k < TILE_OUTPUTS * (HALF_DEPTH / 2); k += N_THREADS) {
        const int        i = k / (HALF_DEPTH / 2), pair = k % (HALF_DEPTH / 2), j = j0 + 2 * pair;
        const uint16_t * row     = (const uint16_t *) a.row(i);
        const bool       used    = i < a.n_features;
        memory.halves.a[i][pair] = (used && j < a.n ? row[j] : 0u) | (used && j + 1 < a.n ? (uint32_t) row[j + 1] << 16 : 0u);
    }
}

template <typename B, typename S>
static __device__ __forceinline__ void load_half_rows(tile_memory & memory, int n, const tile_range & range, B b_row, S factor, int j0) {
#pragma unroll 2
    for (int k = (int) threadIdx.x; k < TILE_ROWS * (HALF_DEPTH / 2); k += N_THREADS) {
        const int r = k / (HALF_DEPTH / 2), pair = k % (HALF_DEPTH / 2), j = j0 + 2 * pair;
        uint32_t  hi = 0, lo = 0;
        if (r >= range.begin && r < range.end && j < n) {
            const float * b  = b_row(r);
            const float   f  = factor(r);
            const float   v0 = b[j] * f, v1 = j + 1 < n ? b[j + 1] * f : 0.0f;
            hi               = half_pair(v0, v1);
            const float2 got = pair_values(hi);
            lo               = half_pair(v0 - got.x, v1 - got.y);
        }
        memory.halves.b[0][r][pair] = hi;
        memory.halves.b[1][r][pair] = lo;
    }
}

// Does the same for F16 features; factor(r) is half_factor of row r.
template <typename B, typename S>
static __device__ __forceinline__ void add_half_tile(tile_memory & memory, const tile_matrix & a, const tile_range & range, B b_row,
                                                     S factor, float sum[N_TILES][4]) {
    const int lane               = (int) threadIdx.x % WARP;
    float     scaled[N_TILES][4] = {};
    for (int j0 = 0; j0 < a.n; j0 += HALF_DEPTH) {
        __syncthreads();
        load_half_features(memory, a, j0);
        load_half_rows(memory, a.n, range, b_row, factor, j0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < HALF_DEPTH / 16; k++) {
            const uint32_t * a0          = memory.halves.a[tile_feature(0)] + 8 * k + lane % 4;
            const uint32_t * a1          = memory.halves.a[tile_feature(1)] + 8 * k + lane % 4;
            const uint32_t   fragment[4] = { a0[0], a1[0], a0[4], a1[4] };
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                if (8 * n + 8 <= range.begin || 8 * n >= range.end) { // The answer is the same for the whole block.
                    continue;
                }
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    const uint32_t * b       = memory.halves.b[part][8 * n + lane / 4] + 8 * k + lane % 4;
                    const uint32_t   pair[2] = { b[0], b[4] };
                    mma_halves(scaled[n], fragment, pair);
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int r = tile_row(n, c % 2);
            if (r >= range.begin && r < range.end) {
                sum[n][c] += scaled[n][c] * inverse_of_half_factor(factor(r));
            }
        }
    }
}

// Does the same for features of any type.
template <typename B, typename S>
static __device__ __forceinline__ void add_factor_tile(tile_memory & memory, const tile_matrix & a, const tile_range & range, B b_row,
                                                       S factor, float sum[N_TILES][4]) {
    if (a.type == GGML_TYPE_F16) {
        add_half_tile(memory, a, range, b_row, factor, sum);
    } else {
        add_float_tile(memory, a, range, b_row, sum);
    }
}
