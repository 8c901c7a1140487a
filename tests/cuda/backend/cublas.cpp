// cublas.cpp: matrix products of cuBLAS as plain loops over the device's memory.
#include "cublas_v2.h"

// A matrix as it lies, column after column.
struct matrix {
    void *         data;
    cudaDataType_t type;
    int            ld;

    float get(int64_t i, int64_t j) const {
        const int64_t at = i + j * ld;
        switch (type) {
            case CUDA_R_16F: return ((const half *) data)[at];
            case CUDA_R_16BF: return ((const nv_bfloat16 *) data)[at];
            default: return ((const float *) data)[at];
        }
    }
    void set(int64_t i, int64_t j, float value) const {
        const int64_t at = i + j * ld;
        switch (type) {
            case CUDA_R_16F: ((half *) data)[at] = value; break;
            case CUDA_R_16BF: ((nv_bfloat16 *) data)[at] = value; break;
            default: ((float *) data)[at] = value; break;
        }
    }
    matrix moved(int64_t n_elements) const { return { (char *) data + n_elements * (type == CUDA_R_32F ? 4 : 2), type, ld }; }
};

struct product {
    cublasOperation_t op_a, op_b;
    int               m, n, k;
    float             alpha, beta;

    product(cublasOperation_t op_a_, cublasOperation_t op_b_, int m_, int n_, int k_, const void * alpha_, const void * beta_,
            cudaDataType_t compute) :
        op_a(op_a_), op_b(op_b_), m(m_), n(n_), k(k_), alpha(scalar(alpha_, compute)), beta(scalar(beta_, compute)) {}

    static float scalar(const void * value, cudaDataType_t type) {
        return type == CUDA_R_16F ? (float) *(const half *) value : *(const float *) value;
    }

    void compute(const matrix & a, const matrix & b, const matrix & c) const {
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < m; i++) {
                float sum = 0.0f;
                for (int l = 0; l < k; l++) {
                    sum += (op_a == CUBLAS_OP_N ? a.get(i, l) : a.get(l, i)) * (op_b == CUBLAS_OP_N ? b.get(l, j) : b.get(j, l));
                }
                // If beta is 0, c is not read, because it may be garbage.
                c.set(i, j, alpha * sum + (beta == 0.0f ? 0.0f : beta * c.get(i, j)));
            }
        }
    }
};

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void * alpha,
                            const void * a, cudaDataType_t type_a, int lda, const void * b, cudaDataType_t type_b, int ldb,
                            const void * beta, void * c, cudaDataType_t type_c, int ldc, cudaDataType_t compute,
                            cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1,
                                      compute, algorithm);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                          const void * alpha, const void * a, cudaDataType_t type_a, int lda, long long stride_a,
                                          const void * b, cudaDataType_t type_b, int ldb, long long stride_b, const void * beta, void * c,
                                          cudaDataType_t type_c, int ldc, long long stride_c, int n_batch, cudaDataType_t compute,
                                          cublasGemmAlgo_t) {
    const cuemu::computing memory;
    const product          one(op_a, op_b, m, n, k, alpha, beta, compute);
    const matrix           all_a = { (void *) a, type_a, lda }, all_b = { (void *) b, type_b, ldb }, all_c = { c, type_c, ldc };
    for (int i = 0; i < n_batch; i++) {
        one.compute(all_a.moved(i * stride_a), all_b.moved(i * stride_b), all_c.moved(i * stride_c));
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void * alpha,
                                   const void * const a[], cudaDataType_t type_a, int lda, const void * const b[], cudaDataType_t type_b,
                                   int ldb, const void * beta, void * const c[], cudaDataType_t type_c, int ldc, int n_batch,
                                   cudaDataType_t compute, cublasGemmAlgo_t) {
    const cuemu::computing memory;
    const product          one(op_a, op_b, m, n, k, alpha, beta, compute);
    for (int i = 0; i < n_batch; i++) {
        one.compute({ (void *) a[i], type_a, lda }, { (void *) b[i], type_b, ldb }, { c[i], type_c, ldc });
    }
    return CUBLAS_STATUS_SUCCESS;
}
