// matmul-tiles.cu: MATMUL and MATMUL_ID for batches of many rows, in four launches whatever the number of deltas: prepare the rows, V x and
// B (c . x), quantise the latter, and the rest.
//
// A block of 128 threads computes a tile of 64 output features and 32 sorted rows; a warp computes 16 features of it. A tile in which
// several matrices meet is computed once for each, for its rows alone. Signs are multiplied on tensor cores as bytes 0 and 1, U and V as
// factor-tiles.cuh says.

#include "dqrelo-cuda.h"
#include "factor-tiles.cuh"
#include "matmul.cuh"
#include "signs.cuh"
#include "sparse-tiles.cuh"

#include "../cpu/kernels.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// Blocks of a multiprocessor. They allow up to 168 registers a thread, which Turing's shorter mma need.
static constexpr int APPLY_BLOCKS = 3;
#else
static constexpr int APPLY_BLOCKS = 4; // It allows up to 128 registers.
#endif
static constexpr int RANK_BLOCKS = 8;  // blocks side by side for a tile's V x, 64 ranks each
static constexpr int CODE_BLOCKS = 16; // and for its B (c . x)

// The work memory. All arrays are indexed by row of y.
struct tiles_work {
    int32_t *       sorted; // Lists the rows in their order, and is not used where the op has one.
    quantized_row * quantized;
    int8_t *        q;     // rows of q_bytes
    int32_t *       x_max; // bits of the largest magnitude of x
    int32_t *       t_max; // and of V x
    float *         t;     // rows of t_stride: V x
    float *         bx;    // rows of t_stride: B (c . x)
    quantized_row * z_quantized;
    int8_t *        zq; // rows of zq_bytes
    void *          fold;
    int32_t         n_rows, q_bytes, t_stride, zq_bytes;
    float           q_max;
};

//
// rows
//

// Computes the largest magnitude and the quantised activation of a row of x, for the first of the rows of y that are made from it, or for
// each of them.
static __device__ void prepare_row(const dqrelo_cuda_op & op, const tiles_work & work, int32_t row) {
    __shared__ int32_t part[N_WARPS];
    const uint32_t     key = key_of_row(op, row);
    if (key == BASE_ROW) {
        return;
    }
    const matrix_ref matrix    = matrix_of_key(op, key);
    const float *    x         = x_row(op, row);
    const bool       quantizes = has_signs(*matrix.e) && ((key & FOLDED) == 0 || matrix.e->n_codes > 0);
    if (quantizes && quantized_row_of(op, *matrix.e, row) == row) {
        quantize_row(activation_row{ x, matrix.cscale() }, op.n_in, work.q_max, work.q + (int64_t) row * work.q_bytes,
                     work.quantized + row);
    }
    if ((matrix.e->dense || matrix.e->rank > 0) && first_row_of_x(op, row) == row) {
        const int32_t max_bits = max_bits_of(activation_row{ x, nullptr }, op.n_in, part);
        if (threadIdx.x == 0) {
            work.x_max[row] = max_bits;
        }
    }
    if (threadIdx.x == 0) {
        work.t_max[row] = 0;
    }
}

static __global__ void __launch_bounds__(N_THREADS, 8)
    prepare_rows(const dqrelo_cuda_op op, const tiles_work work, const int32_t n_sort_blocks) {
    const int32_t block = (int32_t) blockIdx.x;
    if (block < n_sort_blocks) {
        sort_rows(op, work.n_rows, block * SORT_ROWS, work.sorted);
    } else {
        prepare_row(op, work, block - n_sort_blocks);
    }
}

//
// signs
//

// Rows of signs that tiles need, and the quantised rows that they are multiplied with.
struct sign_matrix {
    const uint8_t * first;  // row of signs of the matrix' first feature
    int             n_rows; // of signs
    int             n;      // columns
    const int8_t *  q;      // quantised rows, q_bytes apart
    int32_t         q_bytes;
};

// Sets set[n][c] to the sum of q where the bit is set, modulo 2^32, for features i0 + tile_feature. q_row(r) is the quantised row of the
// tile's row r.
template <typename Q>
static __device__ __forceinline__ void sign_tile(tile_memory & memory, const sign_matrix & a, int i0, const tile_range & range, Q q_row,
                                                 uint32_t set[N_TILES][4]) {
    const int       n_bytes            = a.n / 8;
    const int       lane               = (int) threadIdx.x % WARP;
    const uint8_t * sign0              = a.first + (int64_t) min(i0 + tile_feature(0), a.n_rows - 1) * n_bytes;
    const uint8_t * sign1              = a.first + (int64_t) min(i0 + tile_feature(1), a.n_rows - 1) * n_bytes;
    const bool      aligned            = ((uintptr_t) a.first | (uintptr_t) n_bytes) % PIECE_BYTES == 0;
    int32_t         sum[2][N_TILES][4] = {}; // of hi and lo bytes
    for (int piece = 0; piece * PIECE_BYTES < n_bytes; piece++) {
        __syncthreads();
        for (int i = (int) threadIdx.x; i < TILE_ROWS * 16; i += N_THREADS) {
            const int r = i / 16, v = i % 16;
            if (r >= range.begin && r < range.end) {
                const int8_t * q = a.q + (int64_t) q_row(r) * a.q_bytes + piece / CHUNK_PIECES * CHUNK_BYTES;
                memory.q[r][v]   = ((const int4 *) q)[v * CHUNK_PIECES + piece % CHUNK_PIECES];
            }
        }
        __syncthreads();
        const uint4    s0       = load_signs(sign0, piece * PIECE_BYTES, n_bytes, aligned);
        const uint4    s1       = load_signs(sign1, piece * PIECE_BYTES, n_bytes, aligned);
        const uint32_t words[8] = { s0.x, s1.x, s0.y, s1.y, s0.z, s1.z, s0.w, s1.w };
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                word[i] = words[2 * w + i % 2] >> (lane % 4 + i / 2 * 4) & 0x01010101;
            }
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                if (8 * n + 8 <= range.begin || 8 * n >= range.end) { // the same for the whole block
                    continue;
                }
                const uint32_t * q = (const uint32_t *) &memory.q[8 * n + lane / 4][4 * w] + lane % 4;
#pragma unroll
                for (int plane = 0; plane < 2; plane++) {
                    const uint32_t b[2] = { q[8 * plane], q[8 * plane + 4] };
                    mma_bytes(sum[plane][n], word, b);
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            set[n][c] = 256u * (uint32_t) sum[0][n][c] + (uint32_t) sum[1][n][c];
        }
    }
}

//
// V x and B (c . x)
//

static __device__ __forceinline__ float x_factor(const dqrelo_cuda_op & op, const tiles_work & work, int32_t row) {
    return half_factor(work.x_max[first_row_of_x(op, row)]);
}

// Stores values k0 + tile_feature of V x, and the largest magnitude of each row.
static __device__ __forceinline__ void store_factors(const tiles_work & work, const tile_rows & rows, const tile_range & range, int k0,
                                                     int rank, const float sum[N_TILES][4]) {
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int  r        = tile_row(n, i);
            const bool used     = r >= range.begin && r < range.end;
            int32_t    max_bits = 0;
#pragma unroll
            for (int f = 0; f < 2; f++) {
                const int k = k0 + tile_feature(f);
                if (used && k < rank) {
                    work.t[(int64_t) rows.row[r] * work.t_stride + k] = sum[n][2 * f + i];
                    max_bits                                          = max(max_bits, __float_as_int(sum[n][2 * f + i]) & 0x7fffffff);
                }
            }
#pragma unroll
            for (int bits = 4; bits < WARP; bits *= 2) { // These lanes have the same rows.
                max_bits = max(max_bits, __shfl_xor_sync(0xffffffffu, max_bits, bits));
            }
            if (used && (int) threadIdx.x % WARP < 4) {
                atomicMax(work.t_max + rows.row[r], max_bits);
            }
        }
    }
}

// The sums of d (S q) from those where the bit is set.
static __device__ __forceinline__ float signed_sum(uint32_t set, const quantized_row & quantized, float scale) {
    return quantized.d * scale * (float) (int32_t) (2u * set - (uint32_t) quantized.sum);
}

// Stores values k0 + tile_feature of B (c . x), all planes of them.
static __device__ __forceinline__ void code_tile(tile_memory & memory, const dqrelo_cuda_op & op, const tiles_work & work,
                                                 const tile_rows & rows, const matrix_ref & matrix, int k0, const tile_range & range) {
    const dqrelo_entry & e              = *matrix.e;
    float                bx[N_TILES][4] = {};
    for (int p = 0, code0 = 0; p < DQRELO_MAX_CODE_PLANES && k0 < e.plane_ranks[p]; code0 += e.plane_ranks[p++]) {
        uint32_t          set[N_TILES][4];
        const sign_matrix v = { matrix.vsign_row(code0), e.plane_ranks[p], op.n_in, work.q, work.q_bytes };
        sign_tile(memory, v, k0, range, [&](int r) { return quantized_row_of(op, e, rows.row[r]); }, set);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int k = k0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (k < e.plane_ranks[p] && r >= range.begin && r < range.end) {
                    bx[n][c] += signed_sum(set[n][c], work.quantized[quantized_row_of(op, e, rows.row[r])], matrix.vscale(code0 + k));
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int k = k0 + tile_feature(c / 2), r = tile_row(n, c % 2);
            if (k < e.plane_ranks[0] && r >= range.begin && r < range.end) {
                work.bx[(int64_t) rows.row[r] * work.t_stride + k] = bx[n][c];
            }
        }
    }
}

static __global__ void __launch_bounds__(N_THREADS, 3) factor_tiles(const dqrelo_cuda_op op, const tiles_work work) {
    __shared__ tile_memory memory;
    __shared__ tile_rows   rows;
    load_tile_rows(op, work.n_rows, work.sorted, (int32_t) blockIdx.y * TILE_ROWS, rows);
    tile_range range = { 0, 0 };
    while (next_range(rows, range)) {
        const uint32_t key = rows.key[range.begin];
        if (key == BASE_ROW) {
            continue;
        }
        const matrix_ref matrix = matrix_of_key(op, key);
        const int        block  = (int) blockIdx.x - RANK_BLOCKS;
        for (int k0 = block * TILE_OUTPUTS; block >= 0 && k0 < matrix.e->plane_ranks[0]; k0 += CODE_BLOCKS * TILE_OUTPUTS) {
            code_tile(memory, op, work, rows, matrix, k0, range);
        }
        const int rank = matrix.e->dense || block >= 0 ? 0 : matrix.e->rank;
        for (int k0 = (int) blockIdx.x * TILE_OUTPUTS; k0 < rank; k0 += RANK_BLOCKS * TILE_OUTPUTS) {
            float             sum[N_TILES][4] = {};
            const tile_matrix v(matrix.v_row(k0), matrix.e->type_v, rank - k0, op.n_in);
            add_factor_tile(
                memory, v, range, [&](int r) { return x_row(op, rows.row[r]); }, [&](int r) { return x_factor(op, work, rows.row[r]); },
                sum);
            store_factors(work, rows, range, k0, rank, sum);
        }
    }
}

// Quantises what B (c . x) gives A, a row of y a block.
static __global__ void __launch_bounds__(N_THREADS, 8) quantize_codes(const dqrelo_cuda_op op, const tiles_work work) {
    const int32_t  row = (int32_t) blockIdx.x;
    const uint32_t key = key_of_row(op, row);
    if (key == BASE_ROW || matrix_of_key(op, key).e->n_codes == 0) {
        return;
    }
    const matrix_ref matrix  = matrix_of_key(op, key);
    const int32_t    n_codes = matrix.e->n_codes;
    quantize_row(code_row{ work.bx + (int64_t) row * work.t_stride, matrix }, n_codes, (float) dqrelo_q_max(n_codes),
                 work.zq + (int64_t) row * work.zq_bytes, work.z_quantized + row);
}

//
// output features
//

// Computes the delta of the rows of `range`; with FOLD, what is left of it where it is folded.
template <bool FOLD>
static __device__ __forceinline__ void delta_tile(tile_memory & memory, const dqrelo_cuda_op & op, const tiles_work & work,
                                                  const tile_rows & rows, const matrix_ref & matrix, int i0, const tile_range & range,
                                                  float delta[N_TILES][4]) {
    const dqrelo_entry & e = *matrix.e;
    for (int p = FOLD && (rows.key[range.begin] & FOLDED) ? e.n_planes : 0; p < e.n_planes + (e.n_codes > 0 ? 1 : 0);
         p++) { // the codes of A are a plane more
        const bool codes = p == e.n_planes;
        const auto q_row = [&](int r) { return codes ? rows.row[r] : quantized_row_of(op, e, rows.row[r]); };

        const sign_matrix a = codes ? sign_matrix{ matrix.usign_row(0), op.n_out, e.n_codes, work.zq, work.zq_bytes }
                                    : sign_matrix{ matrix.sign_row(p, 0), op.n_out, op.n_in, work.q, work.q_bytes };
        uint32_t          set[N_TILES][4];
        sign_tile(memory, a, i0, range, q_row, set);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int i = i0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (i < op.n_out && r >= range.begin && r < range.end) {
                    const quantized_row quantized = (codes ? work.z_quantized : work.quantized)[q_row(r)];
                    delta[n][c] += signed_sum(set[n][c], quantized, codes ? 1.0f : matrix.scale(p, i));
                }
            }
        }
    }
    if (e.dense) {
        const tile_matrix dense(matrix.dense_row(i0), e.type_dense, op.n_out - i0, op.n_in);
        add_factor_tile(
            memory, dense, range, [&](int r) { return x_row(op, rows.row[r]); }, [&](int r) { return x_factor(op, work, rows.row[r]); },
            delta);
    } else if (e.rank > 0) {
        const tile_matrix u(matrix.u_row(i0), e.type_u, op.n_out - i0, e.rank);
        add_factor_tile(
            memory, u, range, [&](int r) { return work.t + (int64_t) rows.row[r] * work.t_stride; },
            [&](int r) { return half_factor(work.t_max[rows.row[r]]); }, delta);
    } else if (e.entries) {
        add_sparse_tile(memory, matrix, i0, range, [&](int r) { return x_row(op, rows.row[r]); }, delta);
    }
}

template <bool FOLD>
static __global__ void __launch_bounds__(N_THREADS, FOLD ? 3 : APPLY_BLOCKS) apply_tiles(const dqrelo_cuda_op op, const tiles_work work) {
    __shared__ tile_memory memory;
    __shared__ tile_rows   rows;
    const int              i0 = (int) blockIdx.x * TILE_OUTPUTS;
    load_tile_rows(op, work.n_rows, work.sorted, (int32_t) blockIdx.y * TILE_ROWS, rows);
    tile_range range = { 0, 0 };
    while (next_range(rows, range)) {
        const uint32_t key               = rows.key[range.begin];
        float          delta[N_TILES][4] = {};
        if (key != BASE_ROW) {
            delta_tile<FOLD>(memory, op, work, rows, matrix_of_key<FOLD>(op, key), i0, range, delta);
        } else if (op.dst == op.y) {
            continue;
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int i = i0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (i < op.n_out && r >= range.begin && r < range.end) {
                    const dqrelo_position at             = position_of(op, rows.row[r]);
                    const float           y              = op.y[offset_of(op.y_nb, at) + i];
                    op.dst[offset_of(op.dst_nb, at) + i] = key == BASE_ROW ? y : y + rows.scale[r] * delta[n][c];
                }
            }
        }
    }
}

//
// launcher
//

static tiles_work lay_out(const dqrelo_cuda_op & op, void * memory, int64_t * n_bytes) {
    uint8_t *  base = (uint8_t *) memory;
    int64_t    used = 0;
    const auto take = [&](int64_t row_bytes) {
        uint8_t * p = base + used;
        used += aligned_bytes(row_bytes * dqrelo_cuda_n_rows(&op));
        return (void *) p;
    };
    tiles_work work  = {};
    work.n_rows      = (int32_t) dqrelo_cuda_n_rows(&op);
    work.q_bytes     = quantized_bytes(op.n_in);
    work.t_stride    = rank_stride(op);
    work.zq_bytes    = quantized_bytes(max_codes(op));
    work.q_max       = (float) dqrelo_q_max(op.n_in);
    work.sorted      = (int32_t *) take(sizeof(*work.sorted));
    work.x_max       = (int32_t *) take(sizeof(*work.x_max));
    work.t_max       = (int32_t *) take(sizeof(*work.t_max));
    work.quantized   = (quantized_row *) take(sizeof(*work.quantized));
    work.q           = (int8_t *) take(work.q_bytes);
    work.t           = (float *) take((int64_t) work.t_stride * (int64_t) sizeof(*work.t));
    work.bx          = (float *) take((int64_t) work.t_stride * (int64_t) sizeof(*work.bx));
    work.z_quantized = (quantized_row *) take(sizeof(*work.z_quantized));
    work.zq          = (int8_t *) take(work.zq_bytes);
    work.fold        = take(dqrelo_cuda_fold_row_bytes(op));
    *n_bytes         = used;
    return work;
}

size_t dqrelo_cuda_matmul_tiles_bytes(const dqrelo_cuda_op & op) {
    int64_t n_bytes;
    lay_out(op, nullptr, &n_bytes);
    return (size_t) n_bytes;
}

cudaError_t dqrelo_cuda_matmul_tiles(const dqrelo_cuda_op & op, void * memory, cudaStream_t stream) {
    int64_t          n_bytes;
    const tiles_work work      = lay_out(op, memory, &n_bytes);
    const unsigned   n_rows    = (unsigned) work.n_rows;
    const unsigned   row_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    const unsigned   n_sort    = op.sorted_tokens ? 0 : (n_rows + SORT_ROWS - 1) / SORT_ROWS;
    const dim3       tiles(((unsigned) op.n_out + TILE_OUTPUTS - 1) / TILE_OUTPUTS, row_tiles);
    prepare_rows<<<n_sort + n_rows, N_THREADS, 0, stream>>>(op, work, (int32_t) n_sort);
    if (op.w) {
        dqrelo_cuda_fold(op, work.sorted, work.fold, stream);
    }
    factor_tiles<<<dim3(RANK_BLOCKS + CODE_BLOCKS, row_tiles), N_THREADS, 0, stream>>>(op, work); // ranks are known on the device only
    quantize_codes<<<n_rows, N_THREADS, 0, stream>>>(op, work);
    if (op.w) {
        apply_tiles<true><<<tiles, N_THREADS, 0, stream>>>(op, work);
    } else {
        apply_tiles<false><<<tiles, N_THREADS, 0, stream>>>(op, work);
    }
    return cudaGetLastError();
}
