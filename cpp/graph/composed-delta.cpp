#include "graph/composed-delta.h"

namespace dqrelo {

namespace {

ggml_tensor * sum_of(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    return !a ? b : !b ? a : ggml_add(ctx, a, b);
}

ggml_tensor * product(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x) {
    ggml_tensor * y = ggml_mul_mat(ctx, w, x);
    ggml_mul_mat_set_prec(y, GGML_PREC_F32); // Without it some devices add up in F16.
    return y;
}

// Returns the rows of t [n, m] that ids [a, b] name: [n, a, b].
ggml_tensor * rows_by_id(ggml_context * ctx, ggml_tensor * t, ggml_tensor * ids) {
    ggml_tensor * flat = ggml_is_contiguous(ids) ? ids : ggml_cont(ctx, ids);
    ggml_tensor * rows = ggml_get_rows(ctx, t, ggml_reshape_1d(ctx, flat, ggml_nelements(ids)));
    return ids->ne[1] == 1 ? rows : ggml_reshape_3d(ctx, rows, t->ne[0], ids->ne[0], ids->ne[1]);
}

// Multiplies t [n, n_rows, r * n_mat, ...] by a value, or by n of them, for each matrix: s [1 or n, n_mat].
ggml_tensor * times_by_matrix(ggml_context * ctx, ggml_tensor * t, ggml_tensor * s) {
    const int64_t n_mat = s->ne[1];
    if (n_mat == 1) {
        return ggml_mul(ctx, t, s);
    }
    if (t->ne[2] == n_mat) {
        return ggml_mul(ctx, t, ggml_reshape_3d(ctx, s, s->ne[0], 1, n_mat));
    }
    // Each matrix of the weight serves r of t. They get an axis, so that the values are not repeated in turn.
    ggml_tensor * split = ggml_is_contiguous(t) ? t : ggml_cont(ctx, t);
    split               = ggml_reshape_4d(ctx, split, t->ne[0], t->ne[1], t->ne[2] / n_mat, n_mat);
    split               = ggml_mul(ctx, split, ggml_reshape_4d(ctx, s, s->ne[0], 1, 1, n_mat));
    return ggml_reshape_3d(ctx, split, t->ne[0], t->ne[1], t->ne[2]);
}

ggml_tensor * matmul(ggml_context * ctx, const composed_weight & w, ggml_tensor * x) {
    if (w.dense) {
        return product(ctx, w.dense, x);
    }
    ggml_tensor * cx  = w.cscale ? times_by_matrix(ctx, x, w.cscale) : x;
    ggml_tensor * sum = nullptr;
    for (const auto & plane : w.planes) {
        ggml_tensor * y = product(ctx, plane.sign, cx);
        y               = plane.scale ? times_by_matrix(ctx, y, plane.scale) : ggml_scale(ctx, y, plane.alpha);
        sum             = sum_of(ctx, sum, y);
    }
    sum = sum_of(ctx, sum, w.a ? product(ctx, w.a, product(ctx, w.b, cx)) : nullptr);
    return sum_of(ctx, sum, w.u ? product(ctx, w.u, product(ctx, w.v, x)) : nullptr);
}

// Here x is [n_in, 1 or n_used, n_tokens], and ids [n_used, n_tokens].
ggml_tensor * matmul_id(ggml_context * ctx, const composed_weight & w, ggml_tensor * x, ggml_tensor * ids) {
    if (w.dense) {
        return ggml_mul_mat_id(ctx, w.dense, x, ids);
    }
    ggml_tensor * cx  = w.cscale ? ggml_mul(ctx, rows_by_id(ctx, w.cscale, ids), x) : x;
    ggml_tensor * sum = nullptr;
    for (const auto & plane : w.planes) {
        ggml_tensor * y = ggml_mul_mat_id(ctx, plane.sign, cx, ids);
        y               = plane.scale ? ggml_mul(ctx, y, rows_by_id(ctx, plane.scale, ids)) : ggml_scale(ctx, y, plane.alpha);
        sum             = sum_of(ctx, sum, y);
    }
    sum = sum_of(ctx, sum, w.a ? ggml_mul_mat_id(ctx, w.a, ggml_mul_mat_id(ctx, w.b, cx, ids), ids) : nullptr);
    return sum_of(ctx, sum, w.u ? ggml_mul_mat_id(ctx, w.u, ggml_mul_mat_id(ctx, w.v, x, ids), ids) : nullptr);
}

ggml_tensor * as_f32(ggml_context * ctx, ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 ? t : ggml_cast(ctx, t, GGML_TYPE_F32);
}

// V [n_in, rank, n_mat] as F32 [rank, n_in, n_mat], so that a product with it gives rows of the weight.
ggml_tensor * transposed(ggml_context * ctx, ggml_tensor * v) {
    return ggml_cont(ctx, ggml_transpose(ctx, as_f32(ctx, v)));
}

// Returns the rows of a weight of one matrix.
ggml_tensor * rows(ggml_context * ctx, const composed_weight & w, ggml_tensor * ids) {
    if (w.dense) {
        return rows_by_id(ctx, w.dense, ids);
    }
    ggml_tensor * sum = nullptr;
    for (const auto & plane : w.planes) {
        ggml_tensor * row = rows_by_id(ctx, plane.sign, ids);
        if (plane.scale) { // [n_out, 1]
            row = ggml_mul(ctx, row, rows_by_id(ctx, ggml_reshape_2d(ctx, plane.scale, 1, plane.scale->ne[0]), ids));
        } else {
            row = ggml_scale(ctx, row, plane.alpha);
        }
        sum = sum_of(ctx, sum, row);
    }
    sum = sum_of(ctx, sum, w.a ? product(ctx, transposed(ctx, w.b), rows_by_id(ctx, w.a, ids)) : nullptr);
    if (sum && w.cscale) {
        sum = ggml_mul(ctx, sum, w.cscale);
    }
    return sum_of(ctx, sum, w.u ? product(ctx, transposed(ctx, w.v), rows_by_id(ctx, w.u, ids)) : nullptr);
}

} // namespace

ggml_tensor * composed_whole(ggml_context * ctx, const composed_weight & w) {
    if (w.dense) {
        return as_f32(ctx, w.dense);
    }
    ggml_tensor * sum = nullptr;
    for (const auto & plane : w.planes) {
        ggml_tensor * d = as_f32(ctx, plane.sign);
        if (plane.scale) {
            const bool per_row = plane.scale->ne[0] > 1;
            d                  = ggml_mul(ctx, d, ggml_reshape_3d(ctx, plane.scale, 1, per_row ? plane.scale->ne[0] : 1, w.n_mat));
        } else {
            d = ggml_scale(ctx, d, plane.alpha);
        }
        sum = sum_of(ctx, sum, d);
    }
    sum = sum_of(ctx, sum, w.a ? product(ctx, transposed(ctx, w.b), as_f32(ctx, w.a)) : nullptr);
    if (sum && w.cscale) {
        sum = ggml_mul(ctx, sum, ggml_reshape_3d(ctx, w.cscale, w.cscale->ne[0], 1, w.n_mat));
    }
    return sum_of(ctx, sum, w.u ? product(ctx, transposed(ctx, w.v), as_f32(ctx, w.u)) : nullptr);
}

ggml_tensor * composed_delta(ggml_context * ctx, dqrelo_form form, const composed_weight & w, ggml_tensor * x, ggml_tensor * ids) {
    switch (form) {
        case DQRELO_FORM_MATMUL: return matmul(ctx, w, x);
        case DQRELO_FORM_MATMUL_ID: return matmul_id(ctx, w, x, ids);
        case DQRELO_FORM_ROWS: return rows(ctx, w, ids);
        case DQRELO_FORM_MUL: return ggml_mul(ctx, x, composed_whole(ctx, w));
        case DQRELO_FORM_ADD: return ids ? rows_by_id(ctx, composed_whole(ctx, w), ids) : composed_whole(ctx, w);
    }
    return nullptr;
}

} // namespace dqrelo
