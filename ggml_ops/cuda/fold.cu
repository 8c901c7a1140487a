// fold.cu: the base's product with the signs folded in, on tensor cores: (W + s D) x for rows that are folded, W x for all others, where D
// is the planes, or the dense or sparse part, of a row's delta.
//
// A block of 128 threads computes a tile of 64 output features and 128 sorted rows, once for each delta and request scale that meet in it:
//
//   64 columns of W       F32 in registers      F16 in shared memory        x in F16, by row
//   in its own type   =>  W + s D           =>  [64 features]           x   [128 rows]          added up in F32
//
// Both factors are rounded to F16 once, as they are where a merged model in F16 is multiplied. x is scaled by a power of two for each row,
// so that no activation is too large. So a row's result depends on no other row.

#include "dqrelo-cuda.h"
#include "factor-tiles.cuh"
#include "matmul.cuh"
#include "quantize.cuh"
#include "sparse-tiles.cuh"

static constexpr int FOLD_ROWS     = N_THREADS; // of a tile; a thread looks one up
static constexpr int FOLD_FEATURES = TILE_OUTPUTS;
static constexpr int FOLD_DEPTH    = HALF_DEPTH; // columns that are taken at once
// A warp computes 32 features of 64 rows, as 2 x 8 places of mma.cuh.
static constexpr int WARP_FEATURES = 2;
static constexpr int WARP_ROWS     = 8;

struct fold_work {
    const int32_t * sorted;  // lists the rows in their order; not used where the op has one
    uint32_t *      x;       // pairs of F16; rows of x_pairs
    float *         inverse; // what the products of a row are multiplied with
    int32_t         n_rows, x_pairs;
};

struct fold_memory {
    uint32_t w[FOLD_FEATURES][HALF_WORDS];
    uint32_t x[FOLD_ROWS][HALF_WORDS];
};

struct fold_rows {
    int32_t row[FOLD_ROWS];
    int32_t delta[FOLD_ROWS]; // -1 where the row is not folded
    float   scale[FOLD_ROWS]; // the request scale; 0 where the row is not folded
    int32_t first[FOLD_ROWS]; // the first place of the tile with this delta and scale; -1 behind the last row
    int32_t n;
};

//
// rows
//

// Rounds a row of x to F16 after scaling it, a row a block; columns behind its end are zeros.
static __global__ void __launch_bounds__(N_THREADS, 8) halve_rows(const dqrelo_cuda_op op, const fold_work work) {
    __shared__ int32_t part[N_WARPS];
    const int32_t      row    = (int32_t) blockIdx.x;
    const float *      x      = x_row(op, row);
    const float        factor = half_factor(max_bits_of(activation_row{ x, nullptr }, op.n_in, part));
    for (int pair = (int) threadIdx.x; pair < work.x_pairs; pair += N_THREADS) {
        const int j = 2 * pair;
        work.x[(int64_t) row * work.x_pairs + pair] =
            half_pair(j < op.n_in ? x[j] * factor : 0.0f, j + 1 < op.n_in ? x[j + 1] * factor : 0.0f);
    }
    if (threadIdx.x == 0) {
        work.inverse[row] = inverse_of_half_factor(factor);
    }
}

static __device__ __forceinline__ void load_fold_rows(const dqrelo_cuda_op & op, const fold_work & work, int32_t place0, fold_rows & rows) {
    const int     i     = (int) threadIdx.x;
    const int32_t place = place0 + i;
    const bool    used  = place < work.n_rows;
    rows.delta[i]       = -1;
    rows.scale[i]       = 0.0f;
    rows.first[i]       = -1;
    if (used) {
        const placed_row     at = row_at(op, work.sorted, place);
        const dqrelo_entry * e  = entry_of_delta(op, at.delta);
        rows.row[i]             = at.row;
        if (e && is_folded(op, *e, at.row)) {
            check_matrix(op, *e);
            rows.delta[i] = at.delta;
            rows.scale[i] = token_of(op, position_of(op, at.row))[1];
        }
    }
    if (i == 0) {
        rows.n = min(FOLD_ROWS, work.n_rows - place0);
    }
    __syncthreads();
    if (used) {
        int first = 0;
        while (rows.delta[first] != rows.delta[i] || __float_as_int(rows.scale[first]) != __float_as_int(rows.scale[i])) {
            first++;
        }
        rows.first[i] = first;
    }
    __syncthreads();
}

// Loads columns j0 to j0 + FOLD_DEPTH - 1 of the rows of a group, and zeros for the others.
static __device__ __forceinline__ void load_fold_x(fold_memory & memory, const fold_work & work, const fold_rows & rows, int first,
                                                   int j0) {
#pragma unroll 4
    for (int k = (int) threadIdx.x; k < FOLD_ROWS * (FOLD_DEPTH / 8); k += N_THREADS) {
        const int r = k / (FOLD_DEPTH / 8), vector = k % (FOLD_DEPTH / 8);
        *(uint4 *) (memory.x[r] + 4 * vector) = rows.first[r] == first
                                                    ? ((const uint4 *) (work.x + (int64_t) rows.row[r] * work.x_pairs + j0 / 2))[vector]
                                                    : make_uint4(0, 0, 0, 0);
    }
}

//
// features
//

// Loads eight values of row i of W, with zeros behind the row's end.
static __device__ __forceinline__ void load_base_8(const dqrelo_cuda_op & op, int i, int j, float value[8]) {
    const uint8_t * row = (const uint8_t *) op.w + (int64_t) i * op.w_row_bytes;
    with_type(op.w_type, [&](auto t) {
        constexpr ggml_type type    = decltype(t)::value;
        const bool          aligned = type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0 || is_aligned_16(row);
        if (aligned && j + 8 <= op.n_in) {
            load_8<type>(row, j, value);
            return;
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            value[k] = j + k < op.n_in ? value_at<type>(row, j + k) : 0.0f;
        }
    });
}

// Adds s times the planes, or the dense part, of row i at the same columns.
static __device__ __forceinline__ void add_delta_8(const matrix_ref & matrix, float s, int i, int j, float value[8]) {
    const dqrelo_entry & e = *matrix.e;
    if (e.dense) {
        const void * row = matrix.dense_row(i);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            value[k] += j + k < e.n_in ? s * value_of(e.type_dense, row, j + k) : 0.0f;
        }
        return;
    }
    const float * columns = matrix.cscale();
    for (int p = 0; p < e.n_planes; p++) { // A row of signs is whole bytes.
        const uint32_t bits   = matrix.sign_row(p, i)[j / 8];
        const float    amount = s * matrix.scale(p, i);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float by = columns ? amount * columns[j + k] : amount;
            value[k] += bits >> k & 1 ? by : -by;
        }
    }
}

// Loads columns j0 to j0 + FOLD_DEPTH - 1 of features i0, i0 + 1, ... of W + s D; without an entry, of W. Two threads share a feature.
static __device__ __forceinline__ void load_fold_w(fold_memory & memory, const dqrelo_cuda_op & op, const matrix_ref & matrix, float s,
                                                   int i0, int j0) {
    const int feature = (int) threadIdx.x / 2, i = i0 + feature;
#pragma unroll 2
    for (int v = 0; v < FOLD_DEPTH / 16; v++) {
        const int column = FOLD_DEPTH / 2 * ((int) threadIdx.x % 2) + 8 * v, j = j0 + column;
        float     value[8] = {};
        if (i < op.n_out && j < op.n_in) {
            load_base_8(op, i, j, value);
            if (matrix.e) {
                add_delta_8(matrix, s, i, j, value);
            }
        }
        *(uint4 *) (memory.w[feature] + column / 2) = make_uint4(half_pair(value[0], value[1]), half_pair(value[2], value[3]),
                                                                 half_pair(value[4], value[5]), half_pair(value[6], value[7]));
    }
}

// Adds s times the entries of a feature's row in columns j0 to j0 + FOLD_DEPTH - 1 to what is loaded.
static __device__ __forceinline__ void add_fold_entries(fold_memory & memory, sparse_cursor & cursor, const sparse_row & row, float s,
                                                        int feature, int j0) {
    uint16_t * loaded = (uint16_t *) memory.w[feature];
    for (int piece = 0; piece < FOLD_DEPTH; piece += DEPTH) {
        cursor.fill(row, j0 + piece, [&](int column, float value) {
            uint16_t & own = loaded[piece + column];
            own            = __half_as_ushort(__float2half(half_bits(own) + s * value));
        });
    }
}

//
// products
//

static __device__ __forceinline__ int warp_feature() {
    return (int) threadIdx.x / WARP % 2 * 16 * WARP_FEATURES + (int) threadIdx.x % WARP / 4;
}
static __device__ __forceinline__ int warp_row() {
    return (int) threadIdx.x / WARP / 2 * 8 * WARP_ROWS;
}

// Which of the warp's 64 rows are of a group.
static __device__ __forceinline__ uint64_t rows_of_group(const fold_rows & rows, int first) {
    const int      lane = (int) threadIdx.x % WARP;
    const uint32_t low  = __ballot_sync(0xffffffffu, rows.first[warp_row() + lane] == first);
    const uint32_t high = __ballot_sync(0xffffffffu, rows.first[warp_row() + WARP + lane] == first);
    return (uint64_t) high << 32 | low;
}

static __device__ __forceinline__ void multiply_fold(const fold_memory & memory, uint64_t used, float sum[WARP_FEATURES][WARP_ROWS][4]) {
    const int lane = (int) threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < FOLD_DEPTH / 16; k++) {
        uint32_t a[WARP_FEATURES][4];
#pragma unroll
        for (int m = 0; m < WARP_FEATURES; m++) {
            const uint32_t * w0 = memory.w[warp_feature() + 16 * m] + 8 * k + lane % 4;
            const uint32_t * w1 = memory.w[warp_feature() + 16 * m + 8] + 8 * k + lane % 4;
            a[m][0]             = w0[0];
            a[m][1]             = w1[0];
            a[m][2]             = w0[4];
            a[m][3]             = w1[4];
        }
#pragma unroll
        for (int n = 0; n < WARP_ROWS; n++) {
            if ((used >> (8 * n) & 0xff) == 0) { // The answer is the same for the whole warp.
                continue;
            }
            const uint32_t * x    = memory.x[warp_row() + 8 * n + lane / 4] + 8 * k + lane % 4;
            const uint32_t   b[2] = { x[0], x[4] };
#pragma unroll
            for (int m = 0; m < WARP_FEATURES; m++) {
                mma_halves(sum[m][n], a[m], b);
            }
        }
    }
}

static __device__ __forceinline__ void store_fold(const dqrelo_cuda_op & op, const fold_work & work, const fold_rows & rows, int i0,
                                                  uint64_t used, const float sum[WARP_FEATURES][WARP_ROWS][4]) {
#pragma unroll
    for (int n = 0; n < WARP_ROWS; n++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int r = 8 * n + (int) threadIdx.x % 4 * 2 + c;
            if ((used >> r & 1) == 0) {
                continue;
            }
            const int32_t row     = rows.row[warp_row() + r];
            float *       dst     = op.dst + offset_of(op.dst_nb, position_of(op, row));
            const float   inverse = work.inverse[row];
#pragma unroll
            for (int f = 0; f < 2 * WARP_FEATURES; f++) {
                const int i = i0 + warp_feature() + 8 * f;
                if (i < op.n_out) {
                    dst[i] = sum[f / 2][n][2 * (f % 2) + c] * inverse;
                }
            }
        }
    }
}

// Computes the rows of the group that begins at a place of the tile.
static __device__ __forceinline__ void fold_group(fold_memory & memory, const dqrelo_cuda_op & op, const fold_work & work,
                                                  const fold_rows & rows, int i0, int first) {
    const int        feature                          = (int) threadIdx.x;
    const bool       is_folded                        = rows.delta[first] >= 0;
    const matrix_ref matrix                           = { is_folded ? op.table + rows.delta[first] : nullptr, 0 };
    const float      s                                = rows.scale[first];
    const bool       is_sparse                        = is_folded && matrix.e->entries && !matrix.e->dense;
    const bool       fills                            = is_sparse && feature < FOLD_FEATURES && i0 + feature < op.n_out;
    const uint64_t   used                             = rows_of_group(rows, first);
    float            sum[WARP_FEATURES][WARP_ROWS][4] = {};
    sparse_cursor    cursor;
    if (fills) {
        cursor.at = sparse_row(matrix, i0 + feature).first();
    }
    for (int j0 = 0; j0 < op.n_in; j0 += FOLD_DEPTH) {
        __syncthreads();
        load_fold_w(memory, op, matrix, s, i0, j0);
        load_fold_x(memory, work, rows, first, j0);
        __syncthreads();
        if (is_sparse) {
            if (fills) {
                add_fold_entries(memory, cursor, sparse_row(matrix, i0 + feature), s, feature, j0);
            }
            __syncthreads();
        }
        multiply_fold(memory, used, sum);
    }
    store_fold(op, work, rows, i0, used, sum);
}

static __global__ void __launch_bounds__(N_THREADS, 3) fold_tiles(const dqrelo_cuda_op op, const fold_work work) {
    __shared__ fold_memory memory;
    __shared__ fold_rows   rows;
    load_fold_rows(op, work, (int32_t) blockIdx.y * FOLD_ROWS, rows);
    for (int first = 0; first < rows.n; first++) {
        if (rows.first[first] == first) {
            fold_group(memory, op, work, rows, (int) blockIdx.x * FOLD_FEATURES, first);
        }
    }
}

//
// launcher
//

static int32_t pairs_of(const dqrelo_cuda_op & op) {
    return (op.n_in + FOLD_DEPTH - 1) / FOLD_DEPTH * (FOLD_DEPTH / 2);
}

int64_t dqrelo_cuda_fold_row_bytes(const dqrelo_cuda_op & op) {
    return op.w ? pairs_of(op) * (int64_t) sizeof(uint32_t) + (int64_t) sizeof(float) : 0;
}

void dqrelo_cuda_fold(const dqrelo_cuda_op & op, const int32_t * sorted, void * memory, cudaStream_t stream) {
    fold_work work = {};
    work.sorted    = sorted;
    work.n_rows    = (int32_t) dqrelo_cuda_n_rows(&op);
    work.x_pairs   = pairs_of(op);
    work.x         = (uint32_t *) memory;
    work.inverse   = (float *) (work.x + (int64_t) work.n_rows * work.x_pairs);
    const dim3 tiles(((unsigned) op.n_out + FOLD_FEATURES - 1) / FOLD_FEATURES, ((unsigned) work.n_rows + FOLD_ROWS - 1) / FOLD_ROWS);
    halve_rows<<<(unsigned) work.n_rows, N_THREADS, 0, stream>>>(op, work);
    fold_tiles<<<tiles, N_THREADS, 0, stream>>>(op, work);
}
