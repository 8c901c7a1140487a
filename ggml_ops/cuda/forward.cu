// forward.cu: chooses which kernel runs a node.

#include "elements.cuh"
#include "matmul.cuh"

static bool is_matmul(const dqrelo_cuda_op & op) {
    return op.form == DQRELO_FORM_MATMUL || op.form == DQRELO_FORM_MATMUL_ID;
}

static bool has_few_rows(const dqrelo_cuda_op & op) {
    return dqrelo_cuda_n_rows(&op) <= DQRELO_CUDA_FEW_ROWS && !op.w;
}

size_t dqrelo_cuda_work_bytes(const struct dqrelo_cuda_op * op) {
    if (!is_matmul(*op)) {
        return 0;
    }
    return has_few_rows(*op) ? dqrelo_cuda_matmul_rows_bytes(*op) : dqrelo_cuda_matmul_tiles_bytes(*op);
}

int dqrelo_cuda_forward(const struct dqrelo_cuda_op * op, void * work, int32_t * counters, int n_sm, void * stream) {
    if (dqrelo_cuda_n_rows(op) == 0) {
        return cudaSuccess;
    }
    if (!is_matmul(*op)) {
        return dqrelo_cuda_elements(*op, (cudaStream_t) stream);
    }
    return has_few_rows(*op) ? dqrelo_cuda_matmul_rows(*op, work, counters, n_sm, (cudaStream_t) stream)
                             : dqrelo_cuda_matmul_tiles(*op, work, (cudaStream_t) stream);
}
