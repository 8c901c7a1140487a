// sort.cuh: the rows of a large batch sorted by delta and matrix, for tiles of them.
//
// Where the tokens come in order (dqrelo_cuda_op::sorted_tokens: nearly every MATMUL), a row's place is looked up. Else (experts: which
// matrix a row uses is known on the device only) the first launch sorts.
#pragma once

#include "rows.cuh"

static constexpr int      SORT_ROWS = WARP;       // rows that a block finds the places of
static constexpr int      SORT_KEYS = 2048;       // keys that a block compares with at once
static constexpr uint32_t BASE_ROW  = 0xffff0000; // A row to which nothing is to be added has this key, behind all others.
static constexpr uint32_t FOLDED    = 0x80000000; // is set in the key of a row whose planes are in y already (fold.cu)

// Returns whether the op folds a row's planes, or dense or sparse part, into W: a row of a long sequence, of an op that has W.
static __device__ __forceinline__ bool is_folded(const dqrelo_cuda_op & op, const dqrelo_entry & e, int32_t row) {
    if (!op.w || (e.n_planes == 0 && !e.dense && !e.entries)) {
        return false;
    }
    const float delta = token_of(op, position_of(op, row))[0];
    return delta != (float) (int32_t) delta; // The fraction is the length, in steps of DQRELO_FOLD_ROWS, which are enough.
}

static __device__ __forceinline__ uint32_t key_of(const dqrelo_cuda_op & op, int32_t delta, int32_t row) {
    const dqrelo_entry * e = entry_of_delta(op, delta);
    if (!e) {
        return BASE_ROW;
    }
    check_matrix(op, *e);
    const int32_t matrix = matrix_of(op, *e, position_of(op, row));
    check(delta < 0x7fff && matrix < 0x10000);
    const uint32_t key = (uint32_t) delta << 16 | (uint32_t) matrix;
    if (!is_folded(op, *e, row)) {
        return key;
    }
    return e->rank == 0 && e->n_codes == 0 ? BASE_ROW : key | FOLDED;
}

static __device__ __forceinline__ uint32_t key_of_row(const dqrelo_cuda_op & op, int32_t row) {
    return key_of(op, delta_of(token_of(op, position_of(op, row))), row);
}

// Without FOLD no key is marked as FOLDED, and a register is saved.
template <bool FOLD = true>
static __device__ __forceinline__ matrix_ref matrix_of_key(const dqrelo_cuda_op & op, uint32_t key) {
    return { op.table + ((FOLD ? key & ~FOLDED : key) >> 16), (int32_t) (key & 0xffff) };
}

// Finds the places of SORT_ROWS rows from row0 on, which are the numbers of rows that come before them. A lane counts for one row, each
// warp among a quarter of the keys.
static __device__ inline void sort_rows(const dqrelo_cuda_op & op, int32_t n_rows, int32_t row0, int32_t * sorted) {
    __shared__ uint32_t keys[SORT_KEYS];
    __shared__ int32_t  counts[N_WARPS][SORT_ROWS];
    const int           warp  = (int) threadIdx.x / WARP;
    const int32_t       row   = row0 + (int32_t) threadIdx.x % WARP;
    const uint32_t      key   = row < n_rows ? key_of_row(op, row) : BASE_ROW;
    int32_t             count = 0;
    for (int32_t first = 0; first < n_rows; first += SORT_KEYS) {
        const int32_t n = min(SORT_KEYS, n_rows - first);
        __syncthreads();
#pragma unroll 4
        for (int32_t k = (int32_t) threadIdx.x; k < n; k += N_THREADS) {
            keys[k] = key_of_row(op, first + k);
        }
        __syncthreads();
        const int32_t begin = n * warp / N_WARPS, end = n * (warp + 1) / N_WARPS;
        // Equal keys stay in order: those before this row count.
        const int32_t own = max(begin, min(end, row - first));
        for (int32_t k = begin; k < own; k++) {
            count += keys[k] <= key;
        }
        for (int32_t k = own; k < end; k++) {
            count += keys[k] < key;
        }
    }
    counts[warp][threadIdx.x % WARP] = count;
    __syncthreads();
    if (warp == 0 && row < n_rows) {
        for (int w = 1; w < N_WARPS; w++) {
            count += counts[w][threadIdx.x];
        }
        sorted[count] = row;
    }
}

//
// tiles of sorted rows
//

static constexpr int TILE_ROWS = WARP;

struct tile_rows {
    uint32_t key[TILE_ROWS];
    int32_t  row[TILE_ROWS];
    float    scale[TILE_ROWS]; // request scale
    int32_t  n;
};

// The rows of a tile that use one matrix.
struct tile_range {
    int32_t begin, end;
};

struct placed_row {
    int32_t row, delta;
};

// Returns the row at a place of the order. `sorted` is not read where the op has sorted tokens.
static __device__ __forceinline__ placed_row row_at(const dqrelo_cuda_op & op, const int32_t * sorted, int32_t place) {
    if (!op.sorted_tokens) {
        return { sorted[place], delta_of(token_of(op, position_of(op, sorted[place]))) };
    }
    const int32_t token = place / op.rows_per_token % op.n_tokens;
    return { place + op.rows_per_token * ((int32_t) op.sorted_tokens[2 * token] - token), (int32_t) op.sorted_tokens[2 * token + 1] };
}

// Loads the rows of a tile, with all threads of a block.
static __device__ __forceinline__ void load_tile_rows(const dqrelo_cuda_op & op, int32_t n_rows, const int32_t * sorted, int32_t place0,
                                                      tile_rows & rows) {
    const int     lane  = (int) threadIdx.x;
    const int32_t place = place0 + lane;
    if (lane < TILE_ROWS && place < n_rows) {
        const placed_row at = row_at(op, sorted, place);
        rows.row[lane]      = at.row;
        rows.key[lane]      = key_of(op, at.delta, at.row);
        rows.scale[lane]    = token_of(op, position_of(op, at.row))[1];
    }
    if (lane == 0) {
        rows.n = min(TILE_ROWS, n_rows - place0);
    }
    __syncthreads();
}

// Finds the first range of a tile, or the one behind `range`; false where there is none.
static __device__ __forceinline__ bool next_range(const tile_rows & rows, tile_range & range) {
    range.begin = range.end;
    while (range.end < rows.n && rows.key[range.end] == rows.key[range.begin]) {
        range.end++;
    }
    return range.begin < rows.n;
}
