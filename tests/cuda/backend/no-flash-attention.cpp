// no-flash-attention.cpp: what a build of ggml-cuda without flash attention answers.
#include "ggml-cuda/fattn.cuh"

bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor *) {
    return false;
}

size_t ggml_cuda_flash_attn_ext_get_alloc_size(int, const ggml_tensor * dst) {
    return ggml_nbytes(dst);
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context &, ggml_tensor * dst) {
    GGML_ABORT("%s: flash attention is not part of the emulated backend", dst->name);
}
