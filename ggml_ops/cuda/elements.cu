// elements.cu: ROWS, MUL and ADD, which need rows of D_hat itself, in one launch. A block computes 128 columns of one row of y, a thread
// one of them.

#include "elements.cuh"
#include "sparse.cuh"
#include "values.cuh"

static constexpr int N_COLUMNS = 128;

// Returns which row of D_hat a row takes, counted through all matrices of a stack.
static __device__ __forceinline__ int64_t delta_row_of(const dqrelo_cuda_op & op, const dqrelo_entry & e, const dqrelo_position & at) {
    const int64_t id = op.ids ? op.ids[offset_of(op.ids_nb, at)] : at.i1 % e.n_out + at.i2 % e.n_mat * e.n_out;
    return id_in_range(id, e.n_out * e.n_mat);
}

// (A B)(i, j), times the column's scale.
static __device__ float sign_factors_at(const matrix_ref & matrix, int64_t i, int j) {
    const dqrelo_entry & e   = *matrix.e;
    float                sum = 0.0f;
    for (int k = 0; k < e.plane_ranks[0]; k++) {
        float a = 0.0f, b = 0.0f;
        int   code = k;
        for (int p = 0; p < DQRELO_MAX_CODE_PLANES && k < e.plane_ranks[p]; code += e.plane_ranks[p++]) {
            a += matrix.usign_row(i)[code / 8] >> (code % 8) & 1 ? matrix.uscale(code) : -matrix.uscale(code);
            b += matrix.vsign_row(code)[j / 8] >> (j % 8) & 1 ? matrix.vscale(code) : -matrix.vscale(code);
        }
        sum = fmaf(a, b, sum);
    }
    return e.cscale ? matrix.cscale()[j] * sum : sum;
}

// D_hat(i, j) of one matrix.
static __device__ float delta_at(const matrix_ref & matrix, int64_t i, int j) {
    const dqrelo_entry & e = *matrix.e;
    if (e.dense) {
        return value_of(e.type_dense, matrix.dense_row(i), j);
    }
    if (e.entries) {
        return sparse_at(sparse_row(matrix, i), j);
    }
    float sum = sign_factors_at(matrix, i, j);
    for (int p = 0; p < e.n_planes; p++) {
        const float scale = e.cscale ? matrix.cscale()[j] * matrix.scale(p, i) : matrix.scale(p, i);
        sum += matrix.sign_row(p, i)[j / 8] >> (j % 8) & 1 ? scale : -scale;
    }
    const void * u = matrix.u_row(i);
    for (int k = 0; k < e.rank; k++) {
        sum = fmaf(value_of(e.type_u, u, k), value_of(e.type_v, matrix.v_row(k), j), sum);
    }
    return sum;
}

static __global__ void __launch_bounds__(N_COLUMNS) add_elements(const dqrelo_cuda_op op) {
    const dqrelo_position at = position_of(op, (int32_t) blockIdx.x);
    const int32_t         j  = (int32_t) (blockIdx.y * N_COLUMNS + threadIdx.x);
    if (j >= op.n_out) {
        return;
    }
    const float *        token = token_of(op, at);
    const dqrelo_entry * e     = entry_of(op, token);
    float *              dst   = op.dst + offset_of(op.dst_nb, at) + j;
    const float          y     = op.y[offset_of(op.y_nb, at) + j];
    if (!e) {
        *dst = y;
        return;
    }
    check(op.n_out % e->n_in == 0); // ggml broadcasts a short row along the long one
    const int64_t    id     = delta_row_of(op, *e, at);
    const matrix_ref matrix = { e, (int32_t) (id / e->n_out) };
    const float      factor = op.form == DQRELO_FORM_MUL ? op.x[offset_of(op.x_nb, at) + j] : 1.0f;
    *dst                    = y + token[1] * (factor * delta_at(matrix, id % e->n_out, (int) (j % e->n_in)));
}

cudaError_t dqrelo_cuda_elements(const dqrelo_cuda_op & op, cudaStream_t stream) {
    const dim3 grid((unsigned) dqrelo_cuda_n_rows(&op), (unsigned) ((op.n_out + N_COLUMNS - 1) / N_COLUMNS));
    add_elements<<<grid, N_COLUMNS, 0, stream>>>(op);
    return cudaGetLastError();
}
