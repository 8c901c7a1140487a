// matmul.cuh: the launchers of MATMUL and MATMUL_ID.
#pragma once

#include "dqrelo-cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

// Few rows; more are taken 32 at a time.
size_t      dqrelo_cuda_matmul_rows_bytes(const dqrelo_cuda_op & op);
cudaError_t dqrelo_cuda_matmul_rows(const dqrelo_cuda_op & op, void * memory, int32_t * counters, int n_sm, cudaStream_t stream);
