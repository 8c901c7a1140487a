#include "dqrelo-cuda.h"

#include "ggml.h"

// Copies the distances between the rows of t on its axes from `axis` on.
static void copy_strides(const ggml_tensor * t, int axis, int64_t element_bytes, int64_t out[3]) {
    for (int i = 0; i < 3; i++) {
        out[i] = t ? (int64_t) t->nb[axis + i] / element_bytes : 0;
    }
}

// Takes over the order of the tokens where it is an order of y's rows too. That is so where all tokens follow each other along y's axes:
// some rows of the first, as many of the second, and so on, maybe several times over.
static void set_sorted_tokens(dqrelo_cuda_op & op, const ggml_tensor * tokens) {
    int32_t step = 1, n = 1;
    int     axis = 0;
    for (; axis < 3 && (op.stride[axis] == 0 || op.ne[axis] == 1); axis++) {
        step *= op.ne[axis];
    }
    for (; axis < 3 && (op.stride[axis] == n || op.ne[axis] == 1); axis++) {
        n *= op.ne[axis];
    }
    for (; axis < 3 && (op.stride[axis] == 0 || op.ne[axis] == 1); axis++) {
    }
    if (op.form == DQRELO_FORM_MATMUL && tokens->ne[2] == 2 && axis == 3 && n == tokens->ne[1]) {
        op.sorted_tokens  = op.tokens + 2 * tokens->ne[1];
        op.n_tokens       = n;
        op.rows_per_token = step;
    }
}

struct dqrelo_cuda_op dqrelo_cuda_op_of(const struct ggml_tensor * dst) {
    const ggml_tensor * w   = ggml_dqrelo_base_weight(dst);
    const ggml_tensor * y   = w ? dst : dst->src[0];
    const ggml_tensor * x   = dst->src[1];
    const ggml_tensor * ids = dst->src[4];
    dqrelo_cuda_op      op  = {};
    op.form                 = ggml_dqrelo_form(dst);
    op.dst                  = (float *) dst->data;
    op.y                    = (const float *) y->data;
    op.x                    = (const float *) x->data;
    op.ids                  = ids ? (const int32_t *) ids->data : nullptr;
    op.table                = (const dqrelo_entry *) dst->src[2]->data;
    op.tokens               = (const float *) dst->src[3]->data;
    op.n_deltas             = (int32_t) (dst->src[2]->ne[0] / (int64_t) sizeof(dqrelo_entry));
    op.n_in                 = (int32_t) x->ne[0];
    op.n_out                = (int32_t) dst->ne[0];
    op.x_ne1                = (int32_t) x->ne[1];
    for (int i = 0; i < 3; i++) {
        op.ne[i]     = (int32_t) dst->ne[i + 1];
        op.stride[i] = ggml_dqrelo_stride(dst)[i];
    }
    if (w) {
        op.w           = w->data;
        op.w_row_bytes = (int64_t) w->nb[1];
        op.w_type      = w->type;
    }
    set_sorted_tokens(op, dst->src[3]);
    copy_strides(dst, 1, sizeof(float), op.dst_nb);
    copy_strides(y, 1, sizeof(float), op.y_nb);
    copy_strides(x, 1, sizeof(float), op.x_nb);
    copy_strides(ids, 0, sizeof(int32_t), op.ids_nb);
    return op;
}
