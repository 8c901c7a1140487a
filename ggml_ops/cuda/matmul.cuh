// matmul.cuh: the launchers of MATMUL and MATMUL_ID.
#pragma once

#include "dqrelo-cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

// A batch of so many rows, or fewer, has few rows: each of them may be of another delta. More rows share a delta's bytes, and fill tensor
// cores.
#define DQRELO_CUDA_FEW_ROWS 16

// Arrays in the work memory begin at multiples of 256 bytes.
static inline int64_t aligned_bytes(int64_t n) {
    return (n + 255) / 256 * 256;
}

// Returns the distance of rows of V x in values. No rank is larger than the smaller side of the matrix.
static inline int32_t rank_stride(const dqrelo_cuda_op & op) {
    return ((op.n_in < op.n_out ? op.n_in : op.n_out) + 15) & ~15;
}

// The most codes that sign factors may have.
static inline int32_t max_codes(const dqrelo_cuda_op & op) {
    return DQRELO_MAX_CODES_A_SIDE * (op.n_in < op.n_out ? op.n_in : op.n_out);
}

// For few rows, in one launch.
size_t      dqrelo_cuda_matmul_rows_bytes(const dqrelo_cuda_op & op);
cudaError_t dqrelo_cuda_matmul_rows(const dqrelo_cuda_op & op, void * memory, int32_t * counters, int n_sm, cudaStream_t stream);

// For many rows, on tensor cores.
size_t      dqrelo_cuda_matmul_tiles_bytes(const dqrelo_cuda_op & op);
cudaError_t dqrelo_cuda_matmul_tiles(const dqrelo_cuda_op & op, void * memory, cudaStream_t stream);

// The part of it that computes the base's product of an op that has W, with the signs of folded rows in it. `memory` has
// dqrelo_cuda_fold_row_bytes a row; `sorted` lists the rows in their order and is not read where the op has sorted tokens.
int64_t dqrelo_cuda_fold_row_bytes(const dqrelo_cuda_op & op);
void    dqrelo_cuda_fold(const dqrelo_cuda_op & op, const int32_t * sorted, void * memory, cudaStream_t stream);
