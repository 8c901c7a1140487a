// backend.cu: runs the op DQRELO in ggml-cuda, with a stream, work memory and counters.

#include "dqrelo-backend.cuh"
#include "dqrelo-cuda.h"

#include <algorithm>
#include <map>
#include <mutex>

// Returns the counters of a stream, which are zero between launches. They stay for the life of the process, because they are a few bytes a
// stream, and a later stream may have the same handle.
static int32_t * counters_of(int device, cudaStream_t stream) {
    static std::mutex                                        mutex;
    static std::map<std::pair<int, cudaStream_t>, int32_t *> all;
    const std::lock_guard<std::mutex>                        lock(mutex);
    int32_t *&                                               counters = all[{ device, stream }];
    if (!counters) {
        CUDA_CHECK(cudaMalloc((void **) &counters, DQRELO_CUDA_COUNTERS * sizeof(int32_t)));
        // Where a graph is being captured, this becomes a part of it: each run of the graph sets zeros again, which does no harm.
        CUDA_CHECK(cudaMemsetAsync(counters, 0, DQRELO_CUDA_COUNTERS * sizeof(int32_t), stream));
    }
    return counters;
}

void ggml_cuda_op_dqrelo(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const dqrelo_cuda_op       op     = dqrelo_cuda_op_of(dst);
    const cudaStream_t         stream = ctx.stream();
    ggml_cuda_pool_alloc<char> work(ctx.pool(), std::max<size_t>(1, dqrelo_cuda_work_bytes(&op))); // A pool must not be asked for 0 bytes.
    const int                  n_sm = ggml_cuda_info().devices[ctx.device].nsm;
    CUDA_CHECK((cudaError_t) dqrelo_cuda_forward(&op, work.get(), counters_of(ctx.device, stream), n_sm, stream));
}
