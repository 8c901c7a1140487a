#include "dqrelo-op.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

// The node's op_params are {form, stride[0], stride[1], stride[2]}.
static constexpr int OP_PARAM_FORM   = 0;
static constexpr int OP_PARAM_STRIDE = 1;

static constexpr int BASE_WEIGHT = 5; // the source behind ids

static void check_ids(enum dqrelo_form form, const ggml_tensor * y, const ggml_tensor * ids) {
    if (form == DQRELO_FORM_MATMUL || form == DQRELO_FORM_MUL || (form == DQRELO_FORM_ADD && !ids)) {
        GGML_ASSERT(!ids);
        return;
    }
    GGML_ASSERT(ids && ids->type == GGML_TYPE_I32);
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        GGML_ASSERT(ids->ne[i - 1] == y->ne[i]);
    }
}

static void check_x(enum dqrelo_form form, const ggml_tensor * y, const ggml_tensor * x) {
    if (form == DQRELO_FORM_ROWS || form == DQRELO_FORM_ADD) {
        return;
    }
    GGML_ASSERT(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float));
    GGML_ASSERT(form != DQRELO_FORM_MUL || x->ne[0] == y->ne[0]);
    GGML_ASSERT(x->ne[1] == y->ne[1] || (form == DQRELO_FORM_MATMUL_ID && x->ne[1] == 1));
    GGML_ASSERT(x->ne[2] == y->ne[2] && x->ne[3] == y->ne[3]);
}

static void check_shapes(enum dqrelo_form form, const ggml_tensor * y, const ggml_tensor * x, const ggml_tensor * ids,
                         const ggml_tensor * table, const ggml_tensor * tokens) {
    GGML_ASSERT(y->type == GGML_TYPE_F32 && y->nb[0] == sizeof(float));
    GGML_ASSERT(table->type == GGML_TYPE_I8 && ggml_is_contiguous(table) && ggml_nelements(table) == table->ne[0]);
    GGML_ASSERT(table->ne[0] % (int64_t) sizeof(dqrelo_entry) == 0);
    GGML_ASSERT(tokens->type == GGML_TYPE_F32 && tokens->ne[0] == 2 && tokens->ne[2] <= 2 && tokens->ne[3] == 1 &&
                ggml_is_contiguous(tokens));
    check_ids(form, y, ids);
    check_x(form, y, x);
}

void ggml_dqrelo_set(struct ggml_tensor * dst, enum dqrelo_form form, struct ggml_tensor * y, struct ggml_tensor * x,
                     struct ggml_tensor * ids, struct ggml_tensor * table, struct ggml_tensor * tokens, const int32_t stride[3]) {
    check_shapes(form, y, x, ids, table, tokens);
    GGML_ASSERT(dst->type == GGML_TYPE_F32 && dst->nb[0] == sizeof(float) && ggml_are_same_shape(dst, y));

    // This is the last token that a row can name.
    const int64_t last = (y->ne[1] - 1) * stride[0] + (y->ne[2] - 1) * stride[1] + (y->ne[3] - 1) * stride[2];
    GGML_ASSERT(form != DQRELO_FORM_MATMUL_ID || stride[0] == 0);
    GGML_ASSERT(stride[0] >= 0 && stride[1] >= 0 && stride[2] >= 0 && (ggml_is_empty(y) || last < tokens->ne[1]));

    dst->op = GGML_OP_DQRELO;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        dst->src[i] = nullptr;
    }
    dst->src[0] = y;
    dst->src[1] = x;
    dst->src[2] = table;
    dst->src[3] = tokens;
    dst->src[4] = ids;

    const int32_t params[] = { form, stride[0], stride[1], stride[2] };
    ggml_set_op_params(dst, params, sizeof(params));
}

struct ggml_tensor * ggml_dqrelo(struct ggml_context * ctx, enum dqrelo_form form, struct ggml_tensor * y, struct ggml_tensor * x,
                                 struct ggml_tensor * ids, struct ggml_tensor * table, struct ggml_tensor * tokens,
                                 const int32_t stride[3]) {
    struct ggml_tensor * dst = ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, y->ne);
    ggml_dqrelo_set(dst, form, y, x, ids, table, tokens, stride);
    return dst;
}

// The fraction of a token's number counts steps of its sequence's length, so it is exact beside every delta index below 2^16.
static constexpr int64_t LENGTH_STEPS = 256;

float ggml_dqrelo_length(int64_t n_tokens) {
    return (float) std::min(n_tokens / DQRELO_FOLD_ROWS, LENGTH_STEPS - 1) / (float) LENGTH_STEPS;
}

bool ggml_dqrelo_is_long(float token, int64_t n) {
    return (int64_t) ((token - floorf(token)) * (float) LENGTH_STEPS) * DQRELO_FOLD_ROWS >= n;
}

int64_t ggml_dqrelo_long_tokens(int64_t n_each, int64_t n_mat, int64_t n_used) {
    return std::max<int64_t>(DQRELO_FOLD_ROWS, (n_each * n_mat + n_used - 1) / n_used);
}

void ggml_dqrelo_fold(struct ggml_tensor * dst, struct ggml_tensor * w) {
    const ggml_tensor *    x    = dst->src[1];
    const enum dqrelo_form form = ggml_dqrelo_form(dst);
    GGML_ASSERT(dst->op == GGML_OP_DQRELO && (form == DQRELO_FORM_MATMUL || form == DQRELO_FORM_MATMUL_ID));
    GGML_ASSERT(form == DQRELO_FORM_MATMUL_ID || (ggml_is_matrix(dst) && ggml_is_matrix(x) && ggml_is_matrix(w)));
    GGML_ASSERT(w->ne[0] == x->ne[0] && w->ne[1] == dst->ne[0] && w->ne[3] == 1 && w->nb[0] == ggml_type_size(w->type));
    GGML_ASSERT(ggml_nrows(dst) <= DQRELO_FOLD_MAX_ROWS);
    dst->src[0]           = nullptr;
    dst->src[BASE_WEIGHT] = w;
}

struct ggml_tensor * ggml_dqrelo_base_weight(const struct ggml_tensor * node) {
    return node->src[BASE_WEIGHT];
}

void ggml_dqrelo_sort_tokens(float * tokens, int64_t n_tokens) {
    const auto delta = [&](int64_t i) { return tokens[2 * i + 1] == 0.0f || tokens[2 * i] < 0.0f ? -1.0f : floorf(tokens[2 * i]); };
    std::vector<int64_t> order((size_t) n_tokens);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return delta(a) >= 0.0f && (delta(b) < 0.0f || delta(a) < delta(b)); });
    float * sorted = tokens + 2 * n_tokens;
    for (int64_t i : order) {
        *sorted++ = (float) i;
        *sorted++ = delta(i);
    }
}

enum dqrelo_form ggml_dqrelo_form(const struct ggml_tensor * node) {
    return (enum dqrelo_form) ggml_get_op_params_i32(node, OP_PARAM_FORM);
}

const int32_t * ggml_dqrelo_stride(const struct ggml_tensor * node) {
    return node->op_params + OP_PARAM_STRIDE;
}
