#include "graph/finite-guard.h"

#include "ggml-backend.h"

#include <cstring>
#include <memory>

namespace dqrelo {

namespace {

constexpr float LARGEST = 65504.0f; // F16, the usual type of a cell, has no larger number.

// Returns true for a tensor that outlives the graph: the memory of a context. Those that the graph computes have no buffer yet.
bool is_memory(const ggml_tensor * t) {
    return t && t->op == GGML_OP_NONE && t->buffer && !(t->flags & GGML_TENSOR_FLAG_INPUT);
}

bool is_router_product(const ggml_tensor * t) {
    return t && t->op == GGML_OP_MUL_MAT && strstr(t->src[0]->name, ".ffn_gate_inp.");
}

// Returns true for the product with a router, or the delta on top of it.
bool is_router(const ggml_tensor * node) {
    const bool is_sum = node->op == GGML_OP_DQRELO || node->op == GGML_OP_ADD;
    return is_router_product(node) || (is_sum && is_router_product(node->src[0]));
}

} // namespace

bool finite_guard::visit(ggml_tensor * node) {
    if (is_router(node)) {
        return guard_result(node);
    }
    if (node->op == GGML_OP_SET_ROWS && is_memory(node->view_src)) {
        ggml_tensor * written = rows_of_tokens(node->src[0]);
        last                  = written ? written : last;
        return guard(node, 0);
    }
    if (graph.params.mctx) {
        return true;
    }
    // Without a memory, the keys and values of a batch's sequences go from one node to the next.
    if (node->op == GGML_OP_MUL_MAT && is_computed(node->src[0])) {
        return guard(node, 0);
    }
    return node->op != GGML_OP_FLASH_ATTN_EXT || (guard(node, 1) && guard(node, 2));
}

bool finite_guard::has_room() const {
    return ggml_used_mem(graph.ctx) + MAX_NODES * ggml_tensor_overhead() <= ggml_get_mem_size(graph.ctx);
}

bool finite_guard::is_computed(const ggml_tensor * t) const {
    const ggml_tensor * root = t->view_src ? t->view_src : t;
    return root->op != GGML_OP_NONE && !graph.tokens_of(t).none();
}

// Returns what a write was made from, by views of all of it, if it has as many numbers for each token, one token after the other; else
// null.
ggml_tensor * finite_guard::rows_of_tokens(ggml_tensor * t) const {
    const auto is_view = [](const ggml_tensor * v) {
        return (v->op == GGML_OP_VIEW || v->op == GGML_OP_RESHAPE) && ggml_nelements(v->src[0]) == ggml_nelements(v);
    };
    while (is_view(t) && (!graph.tokens_of(t).known || graph.tokens_of(t).none())) {
        t = t->src[0]; // A row of the view joins axes that are apart in its source.
    }
    const row_tokens rows = graph.tokens_of(t);
    if (!rows.known || rows.none() || !ggml_is_contiguous(t)) {
        return nullptr;
    }
    int64_t n_tokens = 1; // Counts the tokens on the axes so far.
    for (int d = 0; d < GGML_MAX_DIMS; d++) {
        const bool is_inside = n_tokens == 1 && rows.stride[d] == 0; // Such an axis lies inside a token.
        if (t->ne[d] > 1 && !is_inside) {
            if (rows.stride[d] != n_tokens) {
                return nullptr;
            }
            n_tokens *= t->ne[d];
        }
    }
    return n_tokens == graph.params.ubatch.n_tokens ? t : nullptr;
}

bool finite_guard::guard(ggml_tensor * node, int k) {
    ggml_tensor * t = node->src[k];
    if (t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16) {
        return true;
    }
    if (!has_room()) {
        return false;
    }
    const auto add = [&](ggml_tensor * added) {
        added->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE;
        return added;
    };
    // A transposed cache takes each number as a row of its own; they are clamped as the longer rows that they come from.
    const bool    is_column = t->op == GGML_OP_RESHAPE && t->ne[0] == 1;
    ggml_tensor * rows      = is_column ? t->src[0] : t;
    rows                    = ggml_is_contiguous(rows) ? rows : add(ggml_cont(graph.ctx, rows));
    rows                    = add(ggml_clamp(graph.ctx, rows, -LARGEST, LARGEST));
    ggml_format_name(rows, "%s (finite)", t->name);
    node->src[k] = is_column ? add(ggml_reshape_4d(graph.ctx, rows, t->ne[0], t->ne[1], t->ne[2], t->ne[3])) : rows;
    return true;
}

// The node's op moves to a new node, and the node, to which all consumers already point, becomes the clamp.
bool finite_guard::guard_result(ggml_tensor * node) {
    if (!has_room()) {
        return false;
    }
    ggml_tensor * moved = ggml_new_tensor(graph.ctx, node->type, GGML_MAX_DIMS, node->ne);
    moved->op           = node->op;
    moved->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE;
    memcpy(moved->op_params, node->op_params, sizeof(node->op_params));
    memcpy(moved->src, node->src, sizeof(node->src));
    ggml_format_name(moved, "%s (unclamped)", node->name);

    const ggml_tensor * clamp = ggml_clamp(graph.ctx, moved, -LARGEST, LARGEST);
    node->op                  = clamp->op;
    memcpy(node->op_params, clamp->op_params, sizeof(node->op_params));
    memcpy(node->src, clamp->src, sizeof(node->src));
    return true;
}

ggml_tensor * finite_guard::finish() {
    if (!last) {
        return nullptr;
    }
    const int64_t n_tokens = graph.params.ubatch.n_tokens;
    ggml_tensor * rows     = ggml_reshape_2d(graph.ctx, last, ggml_nelements(last) / n_tokens, n_tokens);
    ggml_tensor * sums     = ggml_sum_rows(graph.ctx, rows);
    for (ggml_tensor * added : { rows, sums }) {
        added->flags |= last->flags & GGML_TENSOR_FLAG_COMPUTE;
    }
    ggml_set_name(sums, "dqrelo_finite");
    ggml_set_output(sums);
    graph.params.res->add_input(std::make_unique<finite_check>(sums));
    return sums;
}

} // namespace dqrelo
