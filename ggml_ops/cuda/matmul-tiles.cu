// matmul-tiles.cu: MATMUL and MATMUL_ID for batches of many rows, in four launches whatever the number of deltas: sort the rows by matrix, quantise them, V x, and the rest.
//
// A block computes a tile of 64 output features and 32 sorted rows, 128 threads; a warp 16 features of it. A tile in which several matrices meet is computed once for each, for its rows alone.
// Signs are multiplied on tensor cores as bytes 0 and 1, U and V in F32.

#include "dqrelo-cuda.h"
#include "matmul.cuh"
#include "mma.cuh"
#include "signs.cuh"
#include "values.cuh"

#include "../cpu/kernels.h"

static constexpr int TILE_OUTPUTS = 64;
static constexpr int TILE_ROWS    = 32;
static constexpr int N_TILES      = TILE_ROWS / 8; // of a warp's mma
static constexpr int DEPTH        = 32;            // columns of U, V or dense at once
static constexpr int SORT_THREADS = 256;

static constexpr unsigned long long BASE_ROW = ~0ull; // the key of a row without a delta: sorted behind all others

struct tiles_work {
    unsigned long long * key; // [n_rows] slot << 32 | matrix, sorted, as all others
    int32_t *            row;
    float *              scale; // of the request
    quantized_row *      quantized;
    int8_t *             q; // rows of q_bytes
    float *              t; // rows of t_stride: V x
    int32_t              n_rows, q_bytes, t_stride;
    float                q_max;
};

static __device__ __forceinline__ matrix_ref matrix_of_key(const dqrelo_cuda_op & op, unsigned long long key) {
    return { op.table + (key >> 32), (int64_t) (key & 0xffffffff) };
}

//
// sort
//

static __device__ unsigned long long key_of(const dqrelo_cuda_op & op, int32_t row) {
    const dqrelo_position at    = position_of(op, row);
    const float *         owner = owner_of(op, at);
    const dqrelo_entry *  e     = entry_of(op, owner);
    if (!e) {
        return BASE_ROW;
    }
    check_matrix(op, *e);
    return (unsigned long long) owner[0] << 32 | (unsigned) matrix_of(op, *e, at);
}

// A thread finds the place of one row: how many come before it.
static __global__ void __launch_bounds__(SORT_THREADS) sort_rows(const dqrelo_cuda_op op, const tiles_work work) {
    __shared__ unsigned long long keys[SORT_THREADS];
    const int32_t                 row   = (int32_t) (blockIdx.x * SORT_THREADS + threadIdx.x);
    const unsigned long long      key   = row < work.n_rows ? key_of(op, row) : BASE_ROW;
    int32_t                       place = 0;
    for (int32_t first = 0; first < work.n_rows; first += SORT_THREADS) {
        const int32_t other = first + (int32_t) threadIdx.x;
        __syncthreads();
        keys[threadIdx.x] = other < work.n_rows ? key_of(op, other) : BASE_ROW;
        __syncthreads();
        const int n = min(SORT_THREADS, work.n_rows - first);
        for (int k = 0; k < n; k++) {
            place += keys[k] < key || (keys[k] == key && first + k < row);
        }
    }
    if (row < work.n_rows) {
        work.key[place]   = key;
        work.row[place]   = row;
        work.scale[place] = owner_of(op, position_of(op, row))[1];
    }
}

static __global__ void __launch_bounds__(N_THREADS) quantize_rows(const dqrelo_cuda_op op, const tiles_work work) {
    const int32_t            place = (int32_t) blockIdx.x;
    const unsigned long long key   = work.key[place];
    if (key == BASE_ROW) {
        return;
    }
    const matrix_ref matrix = matrix_of_key(op, key);
    if (matrix.e->dense == nullptr && matrix.e->n_planes > 0) {
        quantize_row(x_row(op, work.row[place]), matrix.cscale(), op.n_in, work.q_max, work.q + (int64_t) place * work.q_bytes, work.quantized + place);
    }
}

//
// tiles
//

// Where a thread's values of a tile are: features feature(0), feature(1) and, of each eight rows n, row(n, 0) and row(n, 1): as mma.cuh has them.
static __device__ __forceinline__ int tile_feature(int i) {
    return (int) threadIdx.x / WARP * 16 + (int) threadIdx.x % WARP / 4 + 8 * i;
}
static __device__ __forceinline__ int tile_row(int n, int i) {
    return 8 * n + (int) threadIdx.x % 4 * 2 + i;
}

struct tile_memory {
    union {
        int4  q[TILE_ROWS][17]; // a piece of 128 columns; the 17th keeps rows in different banks
        float b[DEPTH][TILE_ROWS + 1];
    };
    float a[DEPTH][TILE_OUTPUTS + 1];
};

// The rows of a tile that use one matrix.
struct tile_range {
    int32_t row0;       // place of the tile's first row
    int32_t begin, end; // of the tile
};

// sum[n][i] += a . b for the tile's features i of n_features, rows of a_row(feature) of `type`, and rows b_row(place): n columns.
template <typename A, typename B>
static __device__ __forceinline__ void add_float_tile(tile_memory & memory, int32_t type, int n, int i0, int n_features, const tile_range & range, A a_row, B b_row, float sum[N_TILES][4]) {
    for (int j0 = 0; j0 < n; j0 += DEPTH) {
        __syncthreads();
        const int j = j0 + (int) threadIdx.x % DEPTH;
        for (int i = (int) threadIdx.x / DEPTH; i < TILE_OUTPUTS; i += N_THREADS / DEPTH) {
            memory.a[j - j0][i] = j < n && i0 + i < n_features ? value_of(type, a_row(i0 + i), j) : 0.0f;
        }
        for (int r = (int) threadIdx.x / DEPTH; r < TILE_ROWS; r += N_THREADS / DEPTH) {
            memory.b[j - j0][r] = j < n && r >= range.begin && r < range.end ? b_row(range.row0 + r)[j] : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            const float a0 = memory.a[k][tile_feature(0)];
            const float a1 = memory.a[k][tile_feature(1)];
#pragma unroll
            for (int t = 0; t < N_TILES; t++) {
                const float b0 = memory.b[k][tile_row(t, 0)];
                const float b1 = memory.b[k][tile_row(t, 1)];
                sum[t][0]      = fmaf(a0, b0, sum[t][0]);
                sum[t][1]      = fmaf(a0, b1, sum[t][1]);
                sum[t][2]      = fmaf(a1, b0, sum[t][2]);
                sum[t][3]      = fmaf(a1, b1, sum[t][3]);
            }
        }
    }
}

// The first range of a tile, or the one behind `range`; false where there is none.
static __device__ bool next_range(const tiles_work & work, tile_range & range) {
    const int n = min(TILE_ROWS, work.n_rows - range.row0);
    range.begin = range.end;
    while (range.end < n && work.key[range.row0 + range.end] == work.key[range.row0 + range.begin]) {
        range.end++;
    }
    return range.begin < n;
}

static __global__ void __launch_bounds__(N_THREADS) factor_tiles(const dqrelo_cuda_op op, const tiles_work work) {
    __shared__ tile_memory memory;
    const int              i0    = (int) blockIdx.x * TILE_OUTPUTS;
    tile_range             range = { (int32_t) blockIdx.y * TILE_ROWS, 0, 0 };
    while (next_range(work, range)) {
        const unsigned long long key = work.key[range.row0 + range.begin];
        if (key == BASE_ROW) {
            return;
        }
        const matrix_ref matrix = matrix_of_key(op, key);
        const int        rank   = matrix.e->dense ? 0 : matrix.e->rank;
        if (i0 >= rank) {
            continue;
        }
        float sum[N_TILES][4] = {};
        add_float_tile(
            memory, matrix.e->type_v, op.n_in, i0, rank, range, [&](int k) { return matrix.v_row(k); }, [&](int place) { return x_row(op, work.row[place]); }, sum);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int k = i0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (k < rank && r >= range.begin && r < range.end) {
                    work.t[(int64_t) (range.row0 + r) * work.t_stride + k] = sum[n][c];
                }
            }
        }
    }
}

// set[n][c] = sum of q where the bit of plane p is set, modulo 2^32.
static __device__ __forceinline__ void sign_tile(
    tile_memory & memory, const dqrelo_cuda_op & op, const tiles_work & work, const matrix_ref & matrix, int p, int i0, const tile_range & range, uint32_t set[N_TILES][4]) {
    const int       n_bytes            = op.n_in / 8;
    const int       lane               = (int) threadIdx.x % WARP;
    const uint8_t * sign0              = matrix.sign_row(p, min(i0 + tile_feature(0), op.n_out - 1));
    const uint8_t * sign1              = matrix.sign_row(p, min(i0 + tile_feature(1), op.n_out - 1));
    const bool      aligned            = ((uintptr_t) matrix.sign_row(p, 0) | (uintptr_t) n_bytes) % PIECE_BYTES == 0;
    int32_t         sum[2][N_TILES][4] = {}; // of hi and lo bytes
    for (int piece = 0; piece * PIECE_BYTES < n_bytes; piece++) {
        __syncthreads();
        for (int i = (int) threadIdx.x; i < TILE_ROWS * 16; i += N_THREADS) {
            const int r = i / 16, v = i % 16;
            if (r >= range.begin && r < range.end) {
                const int8_t * q = work.q + (int64_t) (range.row0 + r) * work.q_bytes + piece / CHUNK_PIECES * CHUNK_BYTES;
                memory.q[r][v]   = ((const int4 *) q)[v * CHUNK_PIECES + piece % CHUNK_PIECES];
            }
        }
        __syncthreads();
        const uint4    s0       = load_signs(sign0, piece * PIECE_BYTES, n_bytes, aligned);
        const uint4    s1       = load_signs(sign1, piece * PIECE_BYTES, n_bytes, aligned);
        const uint32_t words[8] = { s0.x, s1.x, s0.y, s1.y, s0.z, s1.z, s0.w, s1.w };
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = words[2 * w + i % 2] >> (lane % 4 + i / 2 * 4) & 0x01010101;
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
                    mma_bytes(sum[plane][n], a, b);
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

// The delta of the rows of `range`.
static __device__ __forceinline__ void delta_tile(
    tile_memory & memory, const dqrelo_cuda_op & op, const tiles_work & work, const matrix_ref & matrix, int i0, const tile_range & range, float delta[N_TILES][4]) {
    const dqrelo_entry & e = *matrix.e;
    for (int p = 0; p < e.n_planes; p++) {
        uint32_t set[N_TILES][4];
        sign_tile(memory, op, work, matrix, p, i0, range, set);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int i = i0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (i < op.n_out && r >= range.begin && r < range.end) {
                    const quantized_row quantized = work.quantized[range.row0 + r];
                    delta[n][c] += quantized.d * matrix.scale(p, i) * (float) (int32_t) (2u * set[n][c] - (uint32_t) quantized.sum);
                }
            }
        }
    }
    if (e.dense) {
        add_float_tile(
            memory, e.type_dense, op.n_in, i0, op.n_out, range, [&](int i) { return matrix.dense_row(i); }, [&](int place) { return x_row(op, work.row[place]); }, delta);
    } else if (e.rank > 0) {
        add_float_tile(
            memory, e.type_u, e.rank, i0, op.n_out, range, [&](int i) { return matrix.u_row(i); }, [&](int place) { return work.t + (int64_t) place * work.t_stride; }, delta);
    }
}

static __global__ void __launch_bounds__(N_THREADS) apply_tiles(const dqrelo_cuda_op op, const tiles_work work) {
    __shared__ tile_memory memory;
    const int              i0    = (int) blockIdx.x * TILE_OUTPUTS;
    tile_range             range = { (int32_t) blockIdx.y * TILE_ROWS, 0, 0 };
    while (next_range(work, range)) {
        const unsigned long long key               = work.key[range.row0 + range.begin];
        float                    delta[N_TILES][4] = {};
        if (key != BASE_ROW) {
            delta_tile(memory, op, work, matrix_of_key(op, key), i0, range, delta);
        } else if (op.dst == op.y) {
            return;
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int i = i0 + tile_feature(c / 2), r = tile_row(n, c % 2);
                if (i < op.n_out && r >= range.begin && r < range.end) {
                    const dqrelo_position at             = position_of(op, work.row[range.row0 + r]);
                    const float           y              = op.y[offset_of(op.y_nb, at) + i];
                    op.dst[offset_of(op.dst_nb, at) + i] = key == BASE_ROW ? y : y + work.scale[range.row0 + r] * delta[n][c];
                }
            }
        }
    }
}

//
// launcher
//

static int64_t aligned_bytes(int64_t n) {
    return (n + 255) / 256 * 256;
}

static tiles_work lay_out(const dqrelo_cuda_op & op, void * memory, int64_t * n_bytes) {
    uint8_t *  base = (uint8_t *) memory;
    int64_t    used = 0;
    const auto take = [&](int64_t row_bytes) {
        uint8_t * p = base + used;
        used += aligned_bytes(row_bytes * dqrelo_cuda_n_rows(&op));
        return (void *) p;
    };
    tiles_work work = {};
    work.n_rows     = (int32_t) dqrelo_cuda_n_rows(&op);
    work.q_bytes    = quantized_bytes(op.n_in);
    work.t_stride   = ((op.n_in < op.n_out ? op.n_in : op.n_out) + 15) & ~15;
    work.q_max      = (float) dqrelo_q_max(op.n_in);
    work.key        = (unsigned long long *) take(sizeof(*work.key));
    work.row        = (int32_t *) take(sizeof(*work.row));
    work.scale      = (float *) take(sizeof(*work.scale));
    work.quantized  = (quantized_row *) take(sizeof(*work.quantized));
    work.q          = (int8_t *) take(work.q_bytes);
    work.t          = (float *) take((int64_t) work.t_stride * (int64_t) sizeof(*work.t));
    *n_bytes        = used;
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
    const unsigned   max_rank  = (unsigned) (op.n_in < op.n_out ? op.n_in : op.n_out); // ranks are known on the device only
    const dim3       rank_tiles((max_rank + TILE_OUTPUTS - 1) / TILE_OUTPUTS, row_tiles);
    const dim3       tiles(((unsigned) op.n_out + TILE_OUTPUTS - 1) / TILE_OUTPUTS, row_tiles);
    sort_rows<<<(n_rows + SORT_THREADS - 1) / SORT_THREADS, SORT_THREADS, 0, stream>>>(op, work);
    quantize_rows<<<n_rows, N_THREADS, 0, stream>>>(op, work);
    factor_tiles<<<rank_tiles, N_THREADS, 0, stream>>>(op, work);
    apply_tiles<<<tiles, N_THREADS, 0, stream>>>(op, work);
    return cudaGetLastError();
}
