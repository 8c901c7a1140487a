// matmul-rows.cu: MATMUL and MATMUL_ID for batches of few rows, in one launch whatever the number of deltas.
//
// Blocks take numbered units of work from a counter: first rows to quantise and rows of V x, then those of B (c . x), then what that gave
// to quantise, then output features. A unit waits until the earlier ones that it needs are done: their numbers are lower, so that they are
// done, or in the hands of a block that runs and waits for still lower ones at most. The last block to leave sets the counters back to
// zero. A block has 128 threads; its shared memory is the plan, under 1 KiB.

#include "dqrelo-cuda.h"
#include "plan.cuh"
#include "sparse.cuh"
#include "values.cuh"

#include "../cpu/kernels.h"

#include <type_traits>

static constexpr int BLOCKS_PER_SM = 3; // It allows up to 168 registers a thread.

static constexpr int TAKEN = 0, QUANTIZED = 1, FACTORED = 2, CODED = 3, Z_QUANTIZED = 4, LEFT = 5; // the counters

struct matmul_work {
    quantized_row * quantized;   // [MAX_ROWS], by row of y
    int8_t *        q;           // [MAX_ROWS] rows of q_bytes, by row of y
    float *         t;           // [MAX_ROWS] rows of t_stride: V x, by sorted row
    quantized_row * z_quantized; // [MAX_ROWS], by sorted row as the next two
    int8_t *        zq;          // [MAX_ROWS] rows of zq_bytes
    float *         bx;          // [MAX_ROWS] rows of bx_stride: B (c . x), its planes one by one, and then in their sum's place
    int32_t         q_bytes, t_stride, zq_bytes, bx_stride;
    float           q_max;
    int32_t *       counters;
};

// What a block need not wait for any more. Only its first thread reads and writes it: in registers, these flags would be in all threads'.
struct waited {
    bool reached[DQRELO_CUDA_COUNTERS];
};

//
// counters
//

// Makes everything that this block's threads have written known before the counter goes up.
static __device__ __forceinline__ void finish_unit(int32_t * counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1);
    }
}

static __device__ __forceinline__ int32_t read_counter(const int32_t * counter) {
#ifdef __CUDA_ARCH__
    int32_t value;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
#else
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
#endif
}

// Waits until a counter has reached its last value. All threads of the block call it.
static __device__ __forceinline__ void wait_for(const matmul_work & work, waited & done, int counter, int32_t target) {
    if (threadIdx.x == 0 && !done.reached[counter]) {
        while (read_counter(work.counters + counter) < target) {
            __nanosleep(100);
        }
        __threadfence();
        done.reached[counter] = true;
    }
    __syncthreads();
}

// Brings bytes into the second-level cache while this block waits.
static __device__ __forceinline__ void prefetch(const void * p, int64_t n_bytes) {
#ifdef __CUDA_ARCH__
    for (int64_t at = 128 * (int64_t) threadIdx.x; at < n_bytes; at += 128 * N_THREADS) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"((const char *) p + at));
    }
#else
    (void) p;
    (void) n_bytes;
#endif
}

//
// units of work
//

static __device__ __forceinline__ int group_of_row(const row_plan & plan, int place) {
    int g = 0;
    while (plan.begin[g + 1] <= place) {
        g++;
    }
    return g;
}

static __device__ void quantize_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int place) {
    const matrix_ref matrix = matrix_of_group(op, plan, group_of_row(plan, place));
    const int32_t    row    = plan.row[place];
    if (has_signs(*matrix.e) && quantized_row_of(op, *matrix.e, row) == row) {
        quantize_row(activation_row{ x_row(op, row), matrix.cscale() }, op.n_in, work.q_max, work.q + row * work.q_bytes,
                     work.quantized + row);
    }
}

// Returns the sum over each group of LANES lanes, in all of them.
template <int LANES>
static __device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
    for (int bits = LANES / 2; bits > 0; bits /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, bits);
    }
    return value;
}

// Calls `tile` for the rows of a group, two at a time and a last one. Larger tiles would save few instructions (unpacking the signs) and
// need more registers than there are.
template <typename F>
static __device__ __forceinline__ void for_tiles(const row_plan & plan, int g, F tile) {
    int       place = plan.begin[g];
    const int end   = plan.begin[g + 1];
    for (; place + 2 <= end; place += 2) {
        tile(std::integral_constant<int, 2>(), place);
    }
    if (place < end) {
        tile(std::integral_constant<int, 1>(), place);
    }
}

// Computes value k of V x for T rows, with one warp.
template <int T>
static __device__ __forceinline__ void factor_tile(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                   const matrix_ref & matrix, int place, int k) {
    const float * x[T];
    float         sum[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        x[t]   = x_row(op, plan.row[place + t]);
        sum[t] = 0.0f;
    }
    const int lane = (int) threadIdx.x % WARP;
    add_dots_of<T>(matrix.e->type_v, matrix.v_row(k), x, op.n_in, lane, WARP, sum);
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float total = sum_lanes<WARP>(sum[t]);
        if (lane == 0) {
            work.t[(place + t) * work.t_stride + k] = total;
        }
    }
}

static __device__ void factor_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int unit) {
    int g = 0;
    while (plan.v_begin[g + 1] <= unit) {
        g++;
    }
    const matrix_ref matrix = matrix_of_group(op, plan, g);
    const int        k      = (unit - plan.v_begin[g]) * V_ROWS + (int) threadIdx.x / WARP;
    if (k < matrix.e->rank) {
        for_tiles(plan, g, [&](auto t, int place) { factor_tile<decltype(t)::value>(op, work, plan, matrix, place, k); });
    }
}

// Which value of a tile, TILE_FEATURES features of T rows, a thread of 16 holds: lane t * TILE_FEATURES + r has feature i0 + r of row t.
// Features are output features, or codes.
template <int T>
struct tile_share {
    bool used;
    int  place, i; // sorted row, feature

    __device__ __forceinline__ tile_share(int place0, int i0, int n_features) {
        const int lane = (int) threadIdx.x % ROW_LANES;
        used           = lane < TILE_FEATURES * T && i0 + lane % TILE_FEATURES < n_features;
        place          = place0 + min(lane / TILE_FEATURES, T - 1);
        i              = min(i0 + lane % TILE_FEATURES, n_features - 1);
    }
};

// Returns the sum of q where the bit is set, modulo 2^32, for this thread's value of a tile. sign is the first of n_r rows of n signs; q
// the first of the quantised rows, q_step bytes apart.
template <int T>
static __device__ __forceinline__ int32_t set_share(const uint8_t * sign, int n_r, int n, const int8_t * q, int q_step) {
    const int lane = (int) threadIdx.x % ROW_LANES;
    int32_t   sum[TILE_FEATURES][T];
    sign_dots<TILE_FEATURES, T>(sign, min(TILE_FEATURES, n_r), n, q, q_step, sum);
    int32_t share = 0;
#pragma unroll
    for (int k = 0; k < TILE_FEATURES * T; k++) {
        share = lane == k ? sum[k % TILE_FEATURES][k / TILE_FEATURES] : share;
    }
    return share;
}

// Returns scale d (S q) from that.
static __device__ __forceinline__ float signed_dot(int32_t set, const quantized_row & quantized, float scale) {
    return quantized.d * scale * (float) (int32_t) (2u * (uint32_t) set - (uint32_t) quantized.sum);
}

// Computes a plane's part of B (c . x) for TILE_FEATURES codes of T rows, with 16 lanes.
template <int T>
static __device__ __forceinline__ void code_tile(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                 const matrix_ref & matrix, int place, int code0) {
    const dqrelo_entry & e = *matrix.e;
    const tile_share<T>  mine(place, code0, e.n_codes);
    const int            first = min(code0, e.n_codes - 1);
    const int32_t        row0  = quantized_row_of(op, e, plan.row[place]);
    const int32_t        row1  = quantized_row_of(op, e, plan.row[place + T - 1]);
    const int32_t        set =
        set_share<T>(matrix.vsign_row(first), e.n_codes - first, op.n_in, work.q + row0 * work.q_bytes, (row1 - row0) * work.q_bytes);
    if (mine.used) {
        work.bx[mine.place * work.bx_stride + mine.i] =
            signed_dot(set, work.quantized[quantized_row_of(op, e, plan.row[mine.place])], matrix.vscale(mine.i));
    }
}

static __device__ void code_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int unit, waited & done) {
    int g = 0;
    while (plan.b_begin[g + 1] <= unit) {
        g++;
    }
    wait_for(work, done, QUANTIZED, plan.n_changed);
    const matrix_ref matrix = matrix_of_group(op, plan, g);
    const int        code   = (unit - plan.b_begin[g]) * UNIT_OUTPUTS + (int) threadIdx.x / ROW_LANES * TILE_FEATURES;
    for_tiles(plan, g, [&](auto t, int place) { code_tile<decltype(t)::value>(op, work, plan, matrix, place, code); });
}

// Adds up the planes of a row's B (c . x), and quantises what that gives A.
static __device__ void z_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int place, waited & done) {
    wait_for(work, done, CODED, plan.z_begin - plan.b_begin[0]);
    const matrix_ref     matrix = matrix_of_group(op, plan, group_of_row(plan, place));
    const dqrelo_entry & e      = *matrix.e;
    if (e.n_codes == 0) {
        return;
    }
    float * bx = work.bx + place * work.bx_stride;
    for (int k = (int) threadIdx.x; k < e.plane_ranks[0]; k += N_THREADS) {
        float sum  = bx[k];
        int   code = k + e.plane_ranks[0];
        for (int p = 1; p < DQRELO_MAX_CODE_PLANES && k < e.plane_ranks[p]; p++) {
            sum += bx[code];
            code += e.plane_ranks[p];
        }
        bx[k] = sum;
    }
    __syncthreads();
    quantize_row(code_row{ bx, matrix }, e.n_codes, (float) dqrelo_q_max(e.n_codes), work.zq + place * work.zq_bytes,
                 work.z_quantized + place);
}

// Returns the sum over planes of scale d (S q) for this thread's value.
template <int T>
static __device__ __forceinline__ float sign_share(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                   const matrix_ref & matrix, const tile_share<T> & mine, int place, int i0) {
    static_assert(T <= 2, "a tile has one row or two");
    const dqrelo_entry & e     = *matrix.e;
    const int            first = min(i0, op.n_out - 1);
    const int32_t        row0  = quantized_row_of(op, e, plan.row[place]);
    const int32_t        row1  = quantized_row_of(op, e, plan.row[place + T - 1]);
    float                delta = 0.0f;
    for (int p = 0; p < e.n_planes; p++) {
        const int32_t set =
            set_share<T>(matrix.sign_row(p, first), op.n_out - first, op.n_in, work.q + row0 * work.q_bytes, (row1 - row0) * work.q_bytes);
        delta += signed_dot(set, work.quantized[quantized_row_of(op, e, plan.row[mine.place])], matrix.scale(p, mine.i));
    }
    return delta;
}

// Returns A's product with its codes for this thread's value.
template <int T>
static __device__ __forceinline__ float code_share(const dqrelo_cuda_op & op, const matmul_work & work, const matrix_ref & matrix,
                                                   const tile_share<T> & mine, int place, int i0) {
    const int     first = min(i0, op.n_out - 1);
    const int32_t set   = set_share<T>(matrix.usign_row(first), op.n_out - first, matrix.e->n_codes, work.zq + place * work.zq_bytes,
                                       (T - 1) * work.zq_bytes);
    return signed_dot(set, work.z_quantized[mine.place], 1.0f);
}

// Returns U t, or dense x, for this thread's value.
template <int T>
static __device__ __forceinline__ float factor_share(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                     const matrix_ref & matrix, int place, int i0) {
    const int            lane = (int) threadIdx.x % ROW_LANES;
    const dqrelo_entry & e    = *matrix.e;
    const float *        b[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        b[t] = e.dense ? x_row(op, plan.row[place + t]) : work.t + (place + t) * work.t_stride;
    }
    float share = 0.0f;
#pragma unroll 1
    for (int r = 0; r < TILE_FEATURES; r++) {
        const int64_t i      = min(i0 + r, op.n_out - 1);
        float         sum[T] = {};
        add_dots_of<T>(e.dense ? e.type_dense : e.type_u, e.dense ? matrix.dense_row(i) : matrix.u_row(i), b, e.dense ? op.n_in : e.rank,
                       lane, ROW_LANES, sum);
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float total = sum_lanes<ROW_LANES>(sum[t]);
            share             = lane == t * TILE_FEATURES + r ? total : share;
        }
    }
    return share;
}

// Returns sparse x for this thread's value.
template <int T>
static __device__ __forceinline__ float sparse_share(const dqrelo_cuda_op & op, const row_plan & plan, const matrix_ref & matrix, int place,
                                                     int i0) {
    const int     lane = (int) threadIdx.x % ROW_LANES;
    const float * b[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        b[t] = x_row(op, plan.row[place + t]);
    }
    float share = 0.0f;
#pragma unroll 1
    for (int r = 0; r < TILE_FEATURES; r++) {
        float sum[T] = {};
        add_sparse_dots<ROW_LANES, T>(sparse_row(matrix, min(i0 + r, op.n_out - 1)), b, sum);
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float total = sum_lanes<ROW_LANES>(sum[t]);
            share             = lane == t * TILE_FEATURES + r ? total : share;
        }
    }
    return share;
}

// Computes output features i0 to i0 + TILE_FEATURES - 1 of T rows, with 16 lanes. They wait for V x after the signs.
template <int T>
static __device__ __forceinline__ void apply_tile(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                  const matrix_ref & matrix, int place, int i0, waited & done) {
    const tile_share<T> mine(place, i0, op.n_out);
    float               delta = sign_share<T>(op, work, plan, matrix, mine, place, i0);
    if (matrix.e->n_codes > 0) {
        wait_for(work, done, Z_QUANTIZED, plan.apply_begin - plan.z_begin);
        delta += code_share<T>(op, work, matrix, mine, place, i0);
    }
    if (matrix.e->rank > 0) {
        wait_for(work, done, FACTORED, plan.b_begin[0] - plan.n_changed);
    }
    if (matrix.e->dense || matrix.e->rank > 0) {
        delta += factor_share<T>(op, work, plan, matrix, place, i0);
    } else if (matrix.e->entries) {
        delta += sparse_share<T>(op, plan, matrix, place, i0);
    }
    if (mine.used) {
        const dqrelo_position at                  = position_of(op, plan.row[mine.place]);
        op.dst[offset_of(op.dst_nb, at) + mine.i] = op.y[offset_of(op.y_nb, at) + mine.i] + plan.scale[mine.place] * delta;
    }
}

static __device__ void apply_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int unit, waited & done) {
    const int            n_units = (op.n_out + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS;
    const int            g       = unit / n_units;
    const matrix_ref     matrix  = matrix_of_group(op, plan, g);
    const int            i0      = unit % n_units * UNIT_OUTPUTS;
    const dqrelo_entry & e       = *matrix.e;
    const int64_t        n       = min(UNIT_OUTPUTS, op.n_out - i0);
    for (int p = 0; p < e.n_planes; p++) {
        prefetch(matrix.sign_row(p, i0), n * (op.n_in / 8));
    }
    if (e.n_codes > 0) {
        prefetch(matrix.usign_row(i0), n * (e.n_codes / 8));
    }
    if (e.rank > 0) {
        prefetch(matrix.u_row(i0), n * dqrelo_type_bytes((ggml_type) e.type_u, e.rank));
    }
    wait_for(work, done, QUANTIZED, plan.n_changed);
    const int i = i0 + (int) threadIdx.x / ROW_LANES * TILE_FEATURES;
    for_tiles(plan, g, [&](auto t, int place) { apply_tile<decltype(t)::value>(op, work, plan, matrix, place, i, done); });
}

static __device__ void copy_unit(const dqrelo_cuda_op & op, int32_t row) {
    const dqrelo_position at  = position_of(op, row);
    float *               dst = op.dst + offset_of(op.dst_nb, at);
    const float *         y   = op.y + offset_of(op.y_nb, at);
    for (int i = (int) threadIdx.x; i < op.n_out; i += N_THREADS) {
        dst[i] = y[i];
    }
}

//
// kernel and launcher
//

static __global__ void __launch_bounds__(N_THREADS, BLOCKS_PER_SM)
    matmul_rows(const dqrelo_cuda_op op, const matmul_work work, const int32_t n_rows) {
    __shared__ row_plan plan;
    __shared__ int32_t  taken;
    __shared__ waited   done;
    if (threadIdx.x == 0) {
        done = {};
    }
    if (threadIdx.x < WARP) {
        make_plan(op, n_rows, plan);
    }
    while (true) {
        __syncthreads();
        if (threadIdx.x == 0) {
            taken = atomicAdd(work.counters + TAKEN, 1);
        }
        __syncthreads();
        const int32_t unit = taken;
        if (unit >= plan.n_units) {
            break;
        }
        if (unit < plan.n_changed) {
            quantize_unit(op, work, plan, unit);
            finish_unit(work.counters + QUANTIZED);
        } else if (unit < plan.b_begin[0]) {
            factor_unit(op, work, plan, unit);
            finish_unit(work.counters + FACTORED);
        } else if (unit < plan.z_begin) {
            code_unit(op, work, plan, unit, done);
            finish_unit(work.counters + CODED);
        } else if (unit < plan.apply_begin) {
            z_unit(op, work, plan, unit - plan.z_begin, done);
            finish_unit(work.counters + Z_QUANTIZED);
        } else if (unit < plan.copy_begin) {
            apply_unit(op, work, plan, unit - plan.apply_begin, done);
        } else {
            copy_unit(op, plan.row[plan.n_changed + unit - plan.copy_begin]);
        }
    }
    if (threadIdx.x == 0 && atomicAdd(work.counters + LEFT, 1) == (int32_t) gridDim.x - 1) {
        for (int c = 0; c < DQRELO_CUDA_COUNTERS; c++) {
            atomicExch(work.counters + c, 0);
        }
    }
}

static matmul_work lay_out(const dqrelo_cuda_op & op, void * memory, int64_t * n_bytes) {
    uint8_t *   base = (uint8_t *) memory;
    int64_t     used = 0;
    matmul_work work = {};
    work.q_bytes     = quantized_bytes(op.n_in);
    work.t_stride    = rank_stride(op);
    work.zq_bytes    = quantized_bytes(max_codes(op));
    work.bx_stride   = max_codes(op);
    work.q_max       = (float) dqrelo_q_max(op.n_in);
    const auto take  = [&](int64_t row_bytes) {
        uint8_t * p = base + used;
        used += aligned_bytes(MAX_ROWS * row_bytes);
        return (void *) p;
    };
    work.q           = (int8_t *) take(work.q_bytes);
    work.t           = (float *) take((int64_t) work.t_stride * (int64_t) sizeof(float));
    work.quantized   = (quantized_row *) take(sizeof(quantized_row));
    work.zq          = (int8_t *) take(work.zq_bytes);
    work.bx          = (float *) take((int64_t) work.bx_stride * (int64_t) sizeof(float));
    work.z_quantized = (quantized_row *) take(sizeof(quantized_row));
    *n_bytes         = used;
    return work;
}

size_t dqrelo_cuda_matmul_rows_bytes(const dqrelo_cuda_op & op) {
    int64_t n_bytes;
    lay_out(op, nullptr, &n_bytes);
    return (size_t) n_bytes;
}

cudaError_t dqrelo_cuda_matmul_rows(const dqrelo_cuda_op & op, void * memory, int32_t * counters, int n_sm, cudaStream_t stream) {
    int64_t     n_bytes;
    matmul_work work     = lay_out(op, memory, &n_bytes);
    work.counters        = counters;
    const int32_t n_rows = (int32_t) dqrelo_cuda_n_rows(&op);
    // This is the most that there can be.
    const int64_t n_groups = op.n_deltas < n_rows && op.form == DQRELO_FORM_MATMUL && op.ne[1] == 1 ? op.n_deltas : n_rows;
    const int64_t n_units  = n_rows + n_groups * ((op.n_out + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS + work.t_stride / V_ROWS);
    const int64_t n_room   = BLOCKS_PER_SM * (int64_t) n_sm;
    matmul_rows<<<(unsigned) (n_units < n_room ? n_units : n_room), N_THREADS, 0, stream>>>(op, work, n_rows);
    return cudaGetLastError();
}
