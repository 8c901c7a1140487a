// quantize.cuh: a row of activations as 16-bit integers in two byte planes: the same integers as ../cpu/scalar.cpp's, in an order that
// suits signs.cuh.
//
// A row's columns are cut into pieces of 128 (16 bytes of signs), 16 pieces a chunk. A word of 32 signs is multiplied as eight times four
// signs: those of columns j, 8 + j, 16 + j, 24 + j, because (word >> j) & 0x01010101 moves them to a byte each. A chunk is stored as 16
// vectors [16 pieces][16 bytes], which 16 lanes read side by side:
//
//   vector 4 w + 0, 1    word w of the piece, hi bytes of j = 0..3, 4..7
//   vector 4 w + 2, 3                         lo bytes
#pragma once

#include "rows.cuh"

static constexpr int CHUNK_COLUMNS = 2048;
static constexpr int CHUNK_BYTES   = 2 * CHUNK_COLUMNS;
static constexpr int PIECE_BYTES   = 16; // bytes of signs
static constexpr int CHUNK_PIECES  = 16;

struct quantized_row {
    float   d;   // step; 0 for a row of zeros, NaN where x has NaN or infinity
    int32_t sum; // sum of all q
};

static __host__ __device__ __forceinline__ int32_t quantized_bytes(int32_t n) {
    return (n + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS * CHUNK_BYTES;
}

// What is quantised: an activation row with its column scales, or without;
struct activation_row {
    const float * x;
    const float * cscale; // or null

    __device__ __forceinline__ float operator()(int j) const { return cscale ? __fmul_rn(x[j], cscale[j]) : x[j]; }
};

// or what the codes of A are multiplied with: B (c . x), times the scale of each code.
struct code_row {
    const float * bx; // [plane_ranks[0]]
    matrix_ref    matrix;

    __device__ __forceinline__ float operator()(int code) const {
        int k = code;
        for (int p = 0; k >= matrix.e->plane_ranks[p]; p++) {
            k -= matrix.e->plane_ranks[p];
        }
        return __fmul_rn(bx[k], matrix.uscale(code));
    }
};

// Combines the values of all threads of the block. `part` has room for a value of each warp.
template <typename T, typename F>
static __device__ __forceinline__ T reduce_block(T value, T * part, F combine) {
#pragma unroll
    for (int bits = WARP / 2; bits > 0; bits /= 2) {
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, bits));
    }
    // By a shuffle, so that the compiler does not keep the address through all units of work, in a register too many.
    const int warp = __shfl_sync(0xffffffffu, (int) threadIdx.x / WARP, 0);
    if (threadIdx.x % WARP == 0) {
        part[warp] = value;
    }
    __syncthreads();
    value = part[0];
    for (int w = 1; w < N_WARPS; w++) {
        value = combine(value, part[w]);
    }
    __syncthreads(); // The array `part` may be written again.
    return value;
}

// The bits of a row's largest magnitude, which all threads of a block find together. The bits of |v| are ordered as integers, with NaN
// above infinity above every number.
template <typename R>
static __device__ int32_t max_bits_of(const R & row, int n, int32_t * part) {
    int32_t max_bits = 0;
    for (int j = (int) threadIdx.x; j < n; j += N_THREADS) {
        max_bits = max(max_bits, __float_as_int(row(j)) & 0x7fffffff);
    }
    return reduce_block(max_bits, part, [](int32_t a, int32_t b) { return a > b ? a : b; });
}

// Quantises a row of n values, with all threads of a block.
template <typename R>
static __device__ void quantize_row(const R & row, int n, float q_max, int8_t * q, quantized_row * out) {
    __shared__ int32_t part[N_WARPS];
    const int32_t      max_bits = max_bits_of(row, n, part);
    const float        v_max    = __int_as_float(max_bits);
    const float        inv      = __fdiv_rn(q_max, v_max);
    const bool         finite   = max_bits < 0x7f800000;
    // A row that is finite but not usable has a v_max of 0, or of less than 1e-34.
    const bool usable  = finite && (__float_as_int(inv) & 0x7fffffff) < 0x7f800000;
    int32_t    sum     = 0;
    const int  n_quads = quantized_bytes(n) / 8; // Each quad is four columns.
    for (int i = (int) threadIdx.x; i < n_quads; i += N_THREADS) {
        const int j     = i % 8; // It is a place inside a word.
        const int piece = i / 8 / 4;
        const int w     = i / 8 % 4;
        uint32_t  hi = 0, lo = 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int column = 128 * piece + 32 * w + 8 * b + j;
            if (usable && column < n) {
                const int32_t v    = __float2int_rn(__fmul_rn(row(column), inv));
                const int32_t high = (v + 128) >> 8;
                hi |= (uint32_t) (high & 255) << (8 * b);
                lo |= (uint32_t) ((v - 256 * high) & 255) << (8 * b);
                sum += v;
            }
        }
        int8_t *   vector  = q + piece / CHUNK_PIECES * CHUNK_BYTES + (4 * w + j / 4) * (CHUNK_PIECES * 16) + piece % CHUNK_PIECES * 16;
        uint32_t * hi_quad = (uint32_t *) vector + j % 4;
        hi_quad[0]         = hi;
        hi_quad[2 * CHUNK_PIECES * 4] = lo;
    }
    sum = reduce_block(sum, part, [](int32_t a, int32_t b) { return a + b; });
    if (threadIdx.x == 0) {
        out->d   = !finite ? __int_as_float(0x7fffffff) : usable ? __fdiv_rn(v_max, q_max) : 0.0f;
        out->sum = sum;
    }
}
