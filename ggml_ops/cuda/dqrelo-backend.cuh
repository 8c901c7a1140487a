// dqrelo-backend.cuh: what ggml-cuda calls for a node of the op DQRELO.
#pragma once

#include "ggml-cuda/common.cuh"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
// The kernels are not built for these, which therefore say that they have no operator: deltas run as ordinary ggml ops there.
static inline bool ggml_cuda_supports_dqrelo(bool /*table_on_device*/) {
    return false;
}
static inline void ggml_cuda_op_dqrelo(ggml_backend_cuda_context &, ggml_tensor * dst) {
    GGML_ABORT("%s: the op DQRELO has no kernels for this backend", dst->name);
}
#else
// The packs lie where their table does.
static inline bool ggml_cuda_supports_dqrelo(bool table_on_device) {
    return table_on_device;
}
void ggml_cuda_op_dqrelo(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
#endif
