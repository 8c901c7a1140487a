// dqrelo-backend.cuh: what ggml-cuda calls for a node of the op DQRELO.
#pragma once

#include "ggml-cuda/common.cuh"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
// The kernels are not built for these: a node gets here only if someone put its table into a device buffer.
static inline void ggml_cuda_op_dqrelo(ggml_backend_cuda_context &, ggml_tensor * dst) {
    GGML_ABORT("%s: the op DQRELO has no kernels for this backend", dst->name);
}
#else
void ggml_cuda_op_dqrelo(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
#endif
