#include "graph/composed.h"

#include "graph/composed-delta.h"

#include <algorithm>
#include <cstring>

namespace dqrelo {

namespace {

// Returns the axis at which the tokens begin, if from there on the rows are the plan's rows in order; else 0.
int first_token_axis(const ggml_tensor * node, const composed_layout & layout, int64_t n_rows) {
    int first = 1;
    while (first < 4 && (node->ne[first] == 1 || layout.stride[first] == 0)) {
        first++;
    }
    int64_t n = 1;
    for (int d = first; d < 4; d++) {
        if (node->ne[d] > 1 && layout.stride[d] != n) {
            return 0;
        }
        n *= node->ne[d];
    }
    return first < 4 && n == n_rows ? first : 0;
}

// Returns whether the rows of some tokens alone still meet the matrices and rows of the weight that they are for.
bool can_select(const weight_read & read, int first) {
    if (first == 0 || read.ids || read.form == DQRELO_FORM_ROWS) {
        return first != 0;
    }
    if (read.weight->ne[2] > 1) {
        return false;
    }
    return read.form == DQRELO_FORM_MATMUL || read.weight->ne[1] == 1 || first >= 2;
}

// Marks nodes for compute that are read by one that is marked.
void mark(ggml_tensor * t) {
    if (t->op == GGML_OP_NONE || (t->flags & GGML_TENSOR_FLAG_COMPUTE)) {
        return;
    }
    t->flags |= GGML_TENSOR_FLAG_COMPUTE;
    for (ggml_tensor * src : t->src) {
        if (src) {
            mark(src);
        }
    }
}

bool reads_x(const weight_read & read) {
    return read.form != DQRELO_FORM_ROWS && read.form != DQRELO_FORM_ADD;
}

} // namespace

std::vector<composed_graph::delta_of_read> composed_graph::deltas_of(const ggml_tensor * weight, row_kind kind) const {
    std::vector<delta_of_read> deltas;
    for (size_t i = 0; i < plan.deltas.size(); i++) {
        const composed_weight * w = find(plan.deltas[i].delta_index, weight);
        if (w && !plan.deltas[i].rows[kind].empty()) {
            deltas.push_back({ i, w });
        }
    }
    return deltas;
}

ggml_tensor * composed_graph::contiguous(ggml_tensor * t) {
    if (ggml_is_contiguous(t)) {
        return t;
    }
    ggml_tensor *& copy = copies[t];
    if (!copy) {
        copy = ggml_cont(ctx, t);
    }
    return copy;
}

// Returns the multipliers of the rows of t, whose axes 1 to 3 are the node's (or 1 where they hold no tokens), to be multiplied onto it.
ggml_tensor * composed_graph::multipliers_like(const ggml_tensor * t, size_t i, const composed_layout & layout) {
    ggml_tensor * multipliers = inputs.multipliers(ctx, i, layout.kind);
    int64_t       ne[4]       = { 1, 1, 1, 1 };
    size_t        nb[4]       = { sizeof(float), sizeof(float), sizeof(float), sizeof(float) };
    for (int d = 1; d < 4 && !layout.one_delta; d++) {
        if (layout.stride[d] != 0) {
            ne[d] = t->ne[d];
            nb[d] = (size_t) layout.stride[d] * sizeof(float);
        }
    }
    return ggml_view_4d(ctx, multipliers, ne[0], ne[1], ne[2], ne[3], nb[1], nb[2], nb[3], 0);
}

// Computes one delta for all rows of the node; where it is not the only one, 0 for rows of others.
ggml_tensor * composed_graph::all_rows(const weight_read & read, const composed_layout & layout, const delta_of_read & delta,
                                       ggml_tensor * x) {
    const delta_rows & rows  = plan.deltas[delta.i];
    const bool         plain = rows.unit && (layout.one_delta || (int64_t) rows.rows[layout.kind].size() == plan.n_rows[layout.kind]);
    ggml_tensor *      ids   = read.ids ? contiguous(read.ids) : nullptr;
    if (reads_x(read)) {
        if (!plain) {
            ggml_tensor *& product = multiplied[{ x, delta.i }];
            product                = product ? product : ggml_mul(ctx, x, multipliers_like(x, delta.i, layout));
            x                      = product;
        }
        return composed_delta(ctx, read.form, *delta.weight, x, ids);
    }
    ggml_tensor *         d  = composed_delta(ctx, read.form, *delta.weight, nullptr, ids);
    const int64_t * const ne = read.node->ne;
    if (read.form == DQRELO_FORM_ROWS || read.ids) {
        d = ggml_reshape_4d(ctx, d, ne[0], ne[1], ne[2], ne[3]);
    } else if (!plain && !layout.one_delta) {
        d = ggml_repeat_4d(ctx, d, ne[0], ne[1], ne[2], ne[3]);
    }
    return plain ? d : ggml_mul(ctx, d, multipliers_like(d, delta.i, layout));
}

// Returns the delta's rows of t, whose tokens begin at axis `first`: [ne[0], .., ne[first - 1], n].
ggml_tensor * composed_graph::gathered(ggml_tensor * t, size_t i, row_kind kind, int first, bool scaled) {
    ggml_tensor *& out = selected[{ t, i, first }];
    if (out) {
        return out;
    }
    int64_t n_inner = 1;
    for (int d = 0; d < first; d++) {
        n_inner *= t->ne[d];
    }
    ggml_tensor * flat = ggml_reshape_2d(ctx, contiguous(t), n_inner, ggml_nelements(t) / n_inner);
    out                = ggml_get_rows(ctx, flat, inputs.rows(ctx, i, kind));
    if (scaled) {
        out = ggml_mul(ctx, out, inputs.request_scales(ctx, i, kind));
    }
    if (first > 1) {
        int64_t ne[4] = { t->ne[0], 1, 1, 1 };
        std::copy(t->ne, t->ne + first, ne);
        ne[first] = out->ne[1];
        out       = ggml_reshape_4d(ctx, out, ne[0], ne[1], ne[2], ne[3]);
    }
    return out;
}

// Computes one delta for its own rows: [n_out, .., n].
ggml_tensor * composed_graph::own_rows(const weight_read & read, const composed_layout & layout, int first, const delta_of_read & delta,
                                       ggml_tensor * x) {
    const bool    scaled = !plan.deltas[delta.i].unit;
    ggml_tensor * ids    = read.ids ? gathered(read.ids, delta.i, layout.kind, first - 1, false) : nullptr;
    if (reads_x(read)) {
        return composed_delta(ctx, read.form, *delta.weight, gathered(x, delta.i, layout.kind, first, scaled), ids);
    }
    ggml_tensor *         d  = composed_delta(ctx, read.form, *delta.weight, nullptr, ids);
    const int64_t * const ne = read.node->ne;
    const int64_t         n  = (int64_t) plan.deltas[delta.i].rows[layout.kind].size();
    if (read.form == DQRELO_FORM_ADD && !read.ids) {
        int64_t full[4] = { ne[0], 1, 1, 1 };
        std::copy(ne, ne + first, full);
        full[first] = n;
        d           = ggml_repeat_4d(ctx, d, full[0], full[1], full[2], full[3]);
    }
    if (scaled) {
        d = ggml_reshape_2d(ctx, d, ggml_nelements(d) / n, n);
        d = ggml_mul(ctx, d, inputs.request_scales(ctx, delta.i, layout.kind));
    }
    return d;
}

// Computes all deltas, each for its rows alone, and 0 for rows without one.
ggml_tensor * composed_graph::scattered(const weight_read & read, const composed_layout & layout, int first,
                                        const std::vector<delta_of_read> & deltas, ggml_tensor * base, ggml_tensor * x) {
    const int64_t n        = plan.n_rows[layout.kind];
    ggml_tensor * sum      = ggml_reshape_2d(ctx, ggml_fill(ctx, base, 0.0f), ggml_nelements(base) / n, n);
    bool          is_first = true;
    for (const delta_of_read & delta : deltas) {
        ggml_tensor * rows = inputs.rows(ctx, delta.i, layout.kind);
        ggml_tensor * d    = ggml_reshape_2d(ctx, own_rows(read, layout, first, delta, x), sum->ne[0], rows->ne[0]);
        if (plan.has_blends && !is_first) {
            d = ggml_add(ctx, d, ggml_get_rows(ctx, sum, rows));
        }
        sum      = ggml_set_rows(ctx, sum, d, rows);
        is_first = false;
    }
    return ggml_reshape_4d(ctx, sum, base->ne[0], base->ne[1], base->ne[2], base->ne[3]);
}

void composed_graph::attach(const weight_read & read, const composed_layout & layout, ggml_tensor * base, ggml_tensor * x) {
    const std::vector<delta_of_read> deltas = deltas_of(read.weight, layout.kind);
    const int64_t                    n      = plan.n_rows[layout.kind];
    const int                        first  = layout.one_delta ? 0 : first_token_axis(read.node, layout, n);
    const bool                       all    = std::all_of(deltas.begin(), deltas.end(), [&](const delta_of_read & delta) {
        return layout.one_delta || (int64_t) plan.deltas[delta.i].rows[layout.kind].size() == n;
    });

    ggml_tensor * d = nullptr;
    if (!all && can_select(read, first)) {
        d = scattered(read, layout, first, deltas, base, x);
    } else {
        for (const delta_of_read & delta : deltas) {
            ggml_tensor * one = all_rows(read, layout, delta, x);
            // One of all rows may have the shape of a single row.
            d = !d ? one : ggml_nelements(d) < ggml_nelements(one) ? ggml_add(ctx, one, d) : ggml_add(ctx, d, one);
        }
    }
    ggml_tensor * node = read.node;
    node->op           = GGML_OP_ADD;
    memset(node->op_params, 0, sizeof(node->op_params));
    std::fill(node->src, node->src + GGML_MAX_SRC, nullptr);
    node->src[0] = base;
    node->src[1] = d;
    if (node->flags & GGML_TENSOR_FLAG_COMPUTE) {
        mark(d);
    }
}

ggml_tensor * composed_graph::merged(ggml_tensor * weight) {
    composed_layout whole;
    whole.one_delta    = true;
    ggml_tensor * copy = weight;
    for (const delta_of_read & delta : deltas_of(weight, ROWS_TOKENS)) {
        ggml_tensor * d = composed_whole(ctx, *delta.weight);
        d               = ggml_reshape_4d(ctx, d, weight->ne[0], weight->ne[1], weight->ne[2], weight->ne[3]);
        if (!plan.deltas[delta.i].unit) {
            d = ggml_mul(ctx, d, multipliers_like(d, delta.i, whole));
        }
        mark(d);
        copy = ggml_add(ctx, copy, d);
    }
    return copy;
}

} // namespace dqrelo
