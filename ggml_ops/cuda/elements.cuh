// elements.cuh: the launcher of ROWS, MUL and ADD.
#pragma once

#include "dqrelo-cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

cudaError_t dqrelo_cuda_elements(const dqrelo_cuda_op & op, cudaStream_t stream);
