// cublas_v2.h: the few calls of cuBLAS that ggml-cuda makes, as plain loops (cublas.cpp). Matrices are column-major; element (i, j) of a is
// a[i + j * lda]. Products are summed in F32 whatever the compute type, which here is a data type, as before CUDA 11.
#pragma once

#include "cuemu.h"

#include <cstdint>

#define CUBLAS_VER_MAJOR 11
#define CUBLAS_VER_MINOR 0

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS          = 0,
    CUBLAS_STATUS_NOT_INITIALIZED  = 1,
    CUBLAS_STATUS_ALLOC_FAILED     = 3,
    CUBLAS_STATUS_INVALID_VALUE    = 7,
    CUBLAS_STATUS_ARCH_MISMATCH    = 8,
    CUBLAS_STATUS_MAPPING_ERROR    = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR   = 14,
    CUBLAS_STATUS_NOT_SUPPORTED    = 15
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1, CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH };
enum cublasSideMode_t { CUBLAS_SIDE_LEFT, CUBLAS_SIDE_RIGHT };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER, CUBLAS_FILL_MODE_UPPER };
enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT, CUBLAS_DIAG_UNIT };
typedef struct cublasContext * cublasHandle_t;

inline cublasStatus_t cublasCreate(cublasHandle_t * handle) {
    *handle = nullptr;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) {
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}

// Computes c (m, n) = alpha op(a) (m, k) op(b) (k, n) + beta c, once, and for `n_batch` matrices at equal distances or at given places. The
// numbers alpha and beta are of the compute type.
cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void * alpha,
                            const void * a, cudaDataType_t type_a, int lda, const void * b, cudaDataType_t type_b, int ldb,
                            const void * beta, void * c, cudaDataType_t type_c, int ldc, cudaDataType_t compute, cublasGemmAlgo_t);
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                          const void * alpha, const void * a, cudaDataType_t type_a, int lda, long long stride_a,
                                          const void * b, cudaDataType_t type_b, int ldb, long long stride_b, const void * beta, void * c,
                                          cudaDataType_t type_c, int ldc, long long stride_c, int n_batch, cudaDataType_t compute,
                                          cublasGemmAlgo_t);
cublasStatus_t cublasGemmBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void * alpha,
                                   const void * const a[], cudaDataType_t type_a, int lda, const void * const b[], cudaDataType_t type_b,
                                   int ldb, const void * beta, void * const c[], cudaDataType_t type_c, int ldc, int n_batch,
                                   cudaDataType_t compute, cublasGemmAlgo_t);

inline cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                  const float * alpha, const float * a, int lda, const float * b, int ldb, const float * beta, float * c,
                                  int ldc) {
    return cublasGemmEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc, CUDA_R_32F,
                        CUBLAS_GEMM_DEFAULT);
}
inline cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                                const float * alpha, const float * a, int lda, long long stride_a, const float * b, int ldb,
                                                long long stride_b, const float * beta, float * c, int ldc, long long stride_c,
                                                int n_batch) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, stride_a, b, CUDA_R_32F, ldb, stride_b, beta,
                                      c, CUDA_R_32F, ldc, stride_c, n_batch, CUDA_R_32F, CUBLAS_GEMM_DEFAULT);
}
inline cublasStatus_t cublasSgemmBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                         const float * alpha, const float * const a[], int lda, const float * const b[], int ldb,
                                         const float * beta, float * const c[], int ldc, int n_batch) {
    return cublasGemmBatchedEx(handle, op_a, op_b, m, n, k, alpha, (const void * const *) a, CUDA_R_32F, lda, (const void * const *) b,
                               CUDA_R_32F, ldb, beta, (void * const *) c, CUDA_R_32F, ldc, n_batch, CUDA_R_32F, CUBLAS_GEMM_DEFAULT);
}

// For triangular systems, which no model here solves.
inline cublasStatus_t cublasStrsmBatched(cublasHandle_t, cublasSideMode_t, cublasFillMode_t, cublasOperation_t, cublasDiagType_t, int, int,
                                         const float *, const float * const[], int, float * const[], int, int) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
}
