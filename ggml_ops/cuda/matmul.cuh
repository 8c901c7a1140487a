// matmul.cuh: the launchers of MATMUL and MATMUL_ID.
#pragma once

#include "dqrelo-cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

// The most rows of a batch that is few: each of them may be of another delta. More share a delta's bytes, and fill tensor cores.
#define DQRELO_CUDA_FEW_ROWS 16

// Few rows, in one launch.
size_t      dqrelo_cuda_matmul_rows_bytes(const dqrelo_cuda_op & op);
cudaError_t dqrelo_cuda_matmul_rows(const dqrelo_cuda_op & op, void * memory, int32_t * counters, int n_sm, cudaStream_t stream);

// Many rows, on tensor cores.
size_t      dqrelo_cuda_matmul_tiles_bytes(const dqrelo_cuda_op & op);
cudaError_t dqrelo_cuda_matmul_tiles(const dqrelo_cuda_op & op, void * memory, cudaStream_t stream);
