// matmul-rows.cu: MATMUL and MATMUL_ID for batches of few rows, in one launch whatever the number of deltas.
//
// Blocks take numbered units of work from a counter: first rows to quantise and rows of V x, then output features. A unit of output
// features waits until the earlier ones are done: their numbers are lower, so that they are done or in the hands of a block that runs and
// waits for nothing. The last block to leave sets the counters back to zero. A block has 128 threads; its shared memory is the plan, under
// 1 KiB.

#include "dqrelo-cuda.h"
#include "plan.cuh"
#include "values.cuh"

#include "../cpu/kernels.h"

#include <type_traits>

static constexpr int BLOCKS_PER_SM = 3; // up to 168 registers a thread

static constexpr int TAKEN = 0, QUANTIZED = 1, FACTORED = 2, LEFT = 3; // the counters

struct matmul_work {
    quantized_row * quantized; // [MAX_ROWS], by row of y
    int8_t *        q;         // [MAX_ROWS] rows of q_bytes, by row of y
    float *         t;         // [MAX_ROWS] rows of t_stride: V x, by sorted row
    int32_t         q_bytes, t_stride;
    float           q_max;
    int32_t *       counters;
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

static __device__ __forceinline__ void wait_for(const int32_t * counter, int32_t target) {
    if (threadIdx.x == 0) {
        while (read_counter(counter) < target) {
            __nanosleep(100);
        }
        __threadfence();
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
    if (matrix.e->dense == nullptr && matrix.e->n_planes > 0 && quantized_row_of(op, *matrix.e, row) == row) {
        quantize_row(x_row(op, row), matrix.cscale(), op.n_in, work.q_max, work.q + row * work.q_bytes, work.quantized + row);
    }
}

// The sum over each group of LANES lanes, in all of them.
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

// Which value of a tile, TILE_FEATURES output features of T rows, a thread of 16 holds: lane t * TILE_FEATURES + r has feature i0 + r of
// row t.
template <int T>
struct tile_share {
    bool used;
    int  place, i; // sorted row, output feature

    __device__ __forceinline__ tile_share(int place0, int i0, int n_out) {
        const int lane = (int) threadIdx.x % ROW_LANES;
        used           = lane < TILE_FEATURES * T && i0 + lane % TILE_FEATURES < n_out;
        place          = place0 + min(lane / TILE_FEATURES, T - 1);
        i              = min(i0 + lane % TILE_FEATURES, n_out - 1);
    }
};

// Returns the sum over planes of scale d (S q) for this thread's value.
template <int T>
static __device__ __forceinline__ float sign_share(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                   const matrix_ref & matrix, const tile_share<T> & mine, int place, int i0) {
    static_assert(T <= 2, "a tile has one row or two");
    const int lane  = (int) threadIdx.x % ROW_LANES;
    const int first = min(i0, op.n_out - 1);
    float     delta = 0.0f;
    int32_t   rows[2]; // of the quantised activations
#pragma unroll
    for (int t = 0; t < 2; t++) {
        rows[t] = quantized_row_of(op, *matrix.e, plan.row[place + min(t, T - 1)]);
    }
    for (int p = 0; p < matrix.e->n_planes; p++) {
        int32_t sum[TILE_FEATURES][T];
        sign_dots<TILE_FEATURES, T>(matrix.sign_row(p, first), min(TILE_FEATURES, op.n_out - first), op.n_in,
                                    work.q + rows[0] * work.q_bytes, (rows[1] - rows[0]) * work.q_bytes, sum);
        int32_t share = 0;
#pragma unroll
        for (int k = 0; k < TILE_FEATURES * T; k++) {
            share = lane == k ? sum[k % TILE_FEATURES][k / TILE_FEATURES] : share;
        }
        const quantized_row quantized = work.quantized[quantized_row_of(op, *matrix.e, plan.row[mine.place])];
        delta += quantized.d * matrix.scale(p, mine.i) * (float) (int32_t) (2u * (uint32_t) share - (uint32_t) quantized.sum);
    }
    return delta;
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

// Computes output features i0 to i0 + TILE_FEATURES - 1 of T rows, with 16 lanes. They wait for V x after the signs.
template <int T>
static __device__ __forceinline__ void apply_tile(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan,
                                                  const matrix_ref & matrix, int place, int i0, bool & factored) {
    const tile_share<T> mine(place, i0, op.n_out);
    float               delta = sign_share<T>(op, work, plan, matrix, mine, place, i0);
    if (!factored && matrix.e->rank > 0) {
        wait_for(work.counters + FACTORED, plan.apply_begin - plan.n_changed);
        factored = true;
    }
    if (matrix.e->dense || matrix.e->rank > 0) {
        delta += factor_share<T>(op, work, plan, matrix, place, i0);
    }
    if (mine.used) {
        const dqrelo_position at                  = position_of(op, plan.row[mine.place]);
        op.dst[offset_of(op.dst_nb, at) + mine.i] = op.y[offset_of(op.y_nb, at) + mine.i] + plan.scale[mine.place] * delta;
    }
}

static __device__ void apply_unit(const dqrelo_cuda_op & op, const matmul_work & work, const row_plan & plan, int unit, bool & quantized,
                                  bool & factored) {
    const int        n_units = (op.n_out + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS;
    const int        g       = unit / n_units;
    const matrix_ref matrix  = matrix_of_group(op, plan, g);
    const int        i0      = unit % n_units * UNIT_OUTPUTS;
    if (!quantized) {
        const dqrelo_entry & e = *matrix.e;
        const int64_t        n = min(UNIT_OUTPUTS, op.n_out - i0);
        for (int p = 0; p < e.n_planes; p++) {
            prefetch(matrix.sign_row(p, i0), n * (op.n_in / 8));
        }
        if (e.rank > 0) {
            prefetch(matrix.u_row(i0), n * dqrelo_type_bytes((ggml_type) e.type_u, e.rank));
        }
        wait_for(work.counters + QUANTIZED, plan.n_changed);
        quantized = true;
    }
    const int i = i0 + (int) threadIdx.x / ROW_LANES * TILE_FEATURES;
    for_tiles(plan, g, [&](auto t, int place) { apply_tile<decltype(t)::value>(op, work, plan, matrix, place, i, factored); });
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
    if (threadIdx.x < WARP) {
        make_plan(op, n_rows, plan);
    }
    bool quantized = false, factored = false; // nothing left to wait for
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
        } else if (unit < plan.apply_begin) {
            factor_unit(op, work, plan, unit);
            finish_unit(work.counters + FACTORED);
        } else if (unit < plan.copy_begin) {
            apply_unit(op, work, plan, unit - plan.apply_begin, quantized, factored);
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
    work.q_max       = (float) dqrelo_q_max(op.n_in);
    work.q           = (int8_t *) (base + used);
    used += aligned_bytes(MAX_ROWS * work.q_bytes);
    work.t = (float *) (base + used);
    used += aligned_bytes(MAX_ROWS * (int64_t) work.t_stride * (int64_t) sizeof(float));
    work.quantized = (quantized_row *) (base + used);
    used += aligned_bytes(MAX_ROWS * (int64_t) sizeof(quantized_row));
    *n_bytes = used;
    return work;
}

size_t dqrelo_cuda_matmul_rows_bytes(const dqrelo_cuda_op & op) {
    int64_t n_bytes;
    lay_out(op, nullptr, &n_bytes);
    return (size_t) n_bytes;
}

cudaError_t dqrelo_cuda_matmul_rows(const dqrelo_cuda_op & op, void * memory, int32_t * counters, int n_sm, cudaStream_t stream) {
    int64_t     n_bytes;
    matmul_work work       = lay_out(op, memory, &n_bytes);
    work.counters          = counters;
    const int32_t n_rows   = (int32_t) dqrelo_cuda_n_rows(&op);
    const int64_t n_groups = op.n_deltas < n_rows && op.form == DQRELO_FORM_MATMUL && op.ne[1] == 1 ? op.n_deltas : n_rows; // at most
    const int64_t n_units  = n_rows + n_groups * ((op.n_out + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS + work.t_stride / V_ROWS);
    const int64_t n_room   = BLOCKS_PER_SM * (int64_t) n_sm;
    matmul_rows<<<(unsigned) (n_units < n_room ? n_units : n_room), N_THREADS, 0, stream>>>(op, work, n_rows);
    return cudaGetLastError();
}
