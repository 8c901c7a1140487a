// runtime.h: what the launchers need of the CUDA runtime. Device memory is the heap, every call is done when it returns.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess               = 0,
                   cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1,
                      cudaMemcpyDeviceToHost = 2 };
typedef struct CUstream_st * cudaStream_t;

inline const char * cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "out of memory";
}
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}

// Exactly n_bytes, of garbage: ASan sees an access behind them.
inline cudaError_t cudaMalloc(void ** p, size_t n_bytes) {
    *p = malloc(n_bytes);
    if (*p) {
        memset(*p, 0xA5, n_bytes);
    }
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void * p) {
    free(p);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void * dst, const void * src, size_t n_bytes, cudaMemcpyKind) {
    memcpy(dst, src, n_bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void * dst, int value, size_t n_bytes) {
    memset(dst, value, n_bytes);
    return cudaSuccess;
}
