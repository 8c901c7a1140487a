// plan.cuh: which rows of a small batch use which matrix of which delta. Every block makes the plan for itself: what the rows use is known
// on the device only.
#pragma once

#include "matmul.cuh"
#include "signs.cuh"

static constexpr int MAX_ROWS      = DQRELO_CUDA_FEW_ROWS; // Each row has a lane.
static constexpr int V_ROWS        = N_WARPS;              // rows of V in a unit of work; each warp has one
static constexpr int TILE_FEATURES = 4;                    // output features that the lanes of a row of signs compute at once
static constexpr int UNIT_OUTPUTS  = N_THREADS / ROW_LANES * TILE_FEATURES;

// Rows sorted by matrix: those of group g are row[begin[g]] to row[begin[g + 1] - 1], those of the base alone the last.
// Units of work are numbered in the order quantise, V x, B (c . x), quantise that, output features, copies.
struct row_plan {
    int32_t n_groups, n_changed;
    int32_t delta[MAX_ROWS], matrix[MAX_ROWS]; // by group
    int32_t begin[MAX_ROWS + 1];
    int32_t row[MAX_ROWS];
    float   scale[MAX_ROWS];       // request scale of a sorted row
    int32_t v_begin[MAX_ROWS + 1]; // first unit of a group's V x
    int32_t b_begin[MAX_ROWS + 1]; // and of its B (c . x)
    int32_t z_begin, apply_begin, copy_begin, n_units;
};

// Returns the number of `lanes` before this one.
static __device__ __forceinline__ int count_before(unsigned lanes, int lane) {
    return __popc(lanes & ((1u << lane) - 1));
}

// The first warp makes the plan; the others must wait for it.
static __device__ void make_plan(const dqrelo_cuda_op & op, int32_t n_rows, row_plan & plan) {
    const unsigned       all   = 0xffffffffu;
    const int            lane  = (int) threadIdx.x;
    const dqrelo_entry * e     = nullptr;
    int32_t              delta = -1, matrix = -1;
    float                scale = 0.0f;
    if (lane < n_rows) {
        const dqrelo_position at    = position_of(op, lane);
        const float *         token = token_of(op, at);
        e                           = entry_of(op, token);
        scale                       = token[1];
        if (e) {
            check_matrix(op, *e);
            delta  = (int32_t) token[0];
            matrix = matrix_of(op, *e, at);
        }
    }
    const unsigned long long key     = e ? (unsigned long long) delta << 32 | (unsigned) matrix : ~0ull;
    const unsigned           same    = __match_any_sync(all, key);
    const int                first   = __ffs((int) same) - 1;
    const unsigned           firsts  = __ballot_sync(all, e && lane == first);
    const unsigned           changed = __ballot_sync(all, e != nullptr);
    const unsigned           base    = __ballot_sync(all, !e && lane < n_rows);
    if (e && lane == first) {
        const int g         = count_before(firsts, lane);
        plan.delta[g]       = delta;
        plan.matrix[g]      = matrix;
        plan.begin[g + 1]   = __popc(same);
        plan.v_begin[g + 1] = e->dense ? 0 : (e->rank + V_ROWS - 1) / V_ROWS;
        plan.b_begin[g + 1] = (e->n_codes + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS;
    }
    __syncwarp();
    if (lane == 0) { // This turns sizes into places.
        plan.n_groups   = __popc(firsts);
        plan.n_changed  = __popc(changed);
        plan.begin[0]   = 0;
        plan.v_begin[0] = plan.n_changed;
        for (int g = 0; g < plan.n_groups; g++) {
            plan.begin[g + 1] += plan.begin[g];
            plan.v_begin[g + 1] += plan.v_begin[g];
        }
        plan.b_begin[0] = plan.v_begin[plan.n_groups];
        for (int g = 0; g < plan.n_groups; g++) {
            plan.b_begin[g + 1] += plan.b_begin[g];
        }
        plan.z_begin     = plan.b_begin[plan.n_groups];
        plan.apply_begin = plan.z_begin + (plan.z_begin > plan.b_begin[0] ? plan.n_changed : 0);
        plan.copy_begin  = plan.apply_begin + plan.n_groups * ((op.n_out + UNIT_OUTPUTS - 1) / UNIT_OUTPUTS);
        plan.n_units     = plan.copy_begin + (op.dst == op.y ? 0 : __popc(base));
    }
    __syncwarp();
    if (lane < n_rows) {
        const int place =
            e ? plan.begin[count_before(firsts, first)] + count_before(same, lane) : plan.n_changed + count_before(base, lane);
        plan.row[place]   = lane;
        plan.scale[place] = scale;
    }
}

static __device__ __forceinline__ matrix_ref matrix_of_group(const dqrelo_cuda_op & op, const row_plan & plan, int g) {
    return { op.table + plan.delta[g], plan.matrix[g] };
}
