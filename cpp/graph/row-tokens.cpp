#include "graph/row-tokens.h"

#include "ggml-impl.h"
#include "llama-graph.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace dqrelo {

namespace {

row_tokens unknown() {
    row_tokens r;
    r.known = false;
    return r;
}

row_tokens with_strides(const row_tokens & from, std::array<int32_t, 4> stride) {
    row_tokens r = from;
    std::copy(stride.begin(), stride.end(), r.stride);
    return r;
}

// Returns the token at a linear element index of a tensor with shape ne.
int64_t index_at(const row_tokens & o, const int64_t * ne, int64_t linear) {
    int64_t index = 0;
    for (int d = 0; d < 4; d++) {
        index += (linear % ne[d]) * o.stride[d];
        linear /= ne[d];
    }
    return index;
}

// Same elements in the same order under another shape. Holds only if the token is still linear in each new axis.
row_tokens reshaped(const row_tokens & from, const ggml_tensor * src, const ggml_tensor * dst) {
    if (ggml_is_empty(src)) { // A ubatch without outputs selects no rows.
        return with_strides(from, { 0, 0, 0, 0 });
    }
    row_tokens to   = from;
    int64_t    step = 1;
    for (int d = 0; d < 4; d++) {
        to.stride[d] = dst->ne[d] > 1 ? (int32_t) index_at(from, src->ne, step) : 0;
        step *= dst->ne[d];
    }
    // Each axis is looked at on its own in full, then all together at many elements.
    step = 1;
    for (int d = 0; d < 4; d++) {
        for (int64_t i = 0; i < dst->ne[d]; i++) {
            if (index_at(from, src->ne, i * step) != i * to.stride[d]) {
                return unknown();
            }
        }
        step *= dst->ne[d];
    }
    const int64_t n   = ggml_nelements(dst);
    const int64_t hop = std::max<int64_t>(1, n / 61);
    for (int64_t linear = n - 1; linear >= 0; linear -= hop) {
        if (index_at(from, src->ne, linear) != index_at(to, dst->ne, linear)) {
            return unknown();
        }
    }
    return to;
}

// Returns the token stride of one hop of `bytes` inside src, taken `n` times, or nothing if that hop is no hop along one axis.
std::optional<int32_t> stride_of_hop(const row_tokens & from, const ggml_tensor * src, size_t bytes, int64_t n) {
    if (n <= 1) {
        return 0;
    }
    int axis = -1;
    for (int d = 0; d < 4; d++) {
        if (src->ne[d] > 1 && src->nb[d] <= bytes && (axis < 0 || src->nb[d] >= src->nb[axis])) {
            axis = d;
        }
    }
    if (axis < 0 || bytes % src->nb[axis] != 0) {
        return std::nullopt;
    }
    const int64_t hop = bytes / src->nb[axis];
    if ((n - 1) * hop >= src->ne[axis]) {
        return std::nullopt;
    }
    return (int32_t) (hop * from.stride[axis]);
}

row_tokens viewed(const row_tokens & from, const ggml_tensor * src, const ggml_tensor * view) {
    if (ggml_is_empty(src)) {
        return with_strides(from, { 0, 0, 0, 0 });
    }
    // A view that begins at a later token would need an offset, which the op has no field for.
    size_t             offset = view->view_offs - src->view_offs;
    std::array<int, 4> axes   = { 0, 1, 2, 3 };
    std::sort(axes.begin(), axes.end(), [&](int a, int b) { return src->nb[a] > src->nb[b]; });
    for (int axis : axes) {
        if (src->ne[axis] > 1) {
            if (from.stride[axis] != 0 && offset / src->nb[axis] != 0) {
                return unknown();
            }
            offset %= src->nb[axis];
        }
    }
    row_tokens to = from;
    for (int d = 0; d < 4; d++) {
        const auto stride = stride_of_hop(from, src, view->nb[d], view->ne[d]);
        if (!stride) {
            return unknown();
        }
        to.stride[d] = *stride;
    }
    return to;
}

row_tokens permuted(const row_tokens & from, const ggml_tensor * node) {
    row_tokens to = from;
    for (int d = 0; d < 4; d++) {
        to.stride[ggml_get_op_params_i32(node, d)] = from.stride[d];
    }
    return to;
}

// Elementwise in tokens: the result has the tokens of its sources; those that are broadcast over the tokens have none.
row_tokens combined(const row_tokens & a, const row_tokens & b) {
    if (!a.known || !b.known) {
        return unknown();
    }
    if (a.tokens && b.tokens && (a.tokens != b.tokens || !std::equal(a.stride, a.stride + 4, b.stride))) {
        return unknown();
    }
    return a.tokens ? a : b;
}

// A source of an elementwise op whose tokens are repeated along an axis is no longer linear in them.
row_tokens broadcast(const row_tokens & from, const ggml_tensor * src, const ggml_tensor * node) {
    for (int d = 0; d < 4; d++) {
        if (from.stride[d] != 0 && src->ne[d] != node->ne[d]) {
            return unknown();
        }
    }
    return from;
}

// The op treats every element alone.
bool is_elementwise(enum ggml_op op) {
    switch (op) {
        case GGML_OP_SCALE:
        case GGML_OP_SQR:
        case GGML_OP_SQRT:
        case GGML_OP_LOG:
        case GGML_OP_SIN:
        case GGML_OP_COS:
        case GGML_OP_UNARY:
        case GGML_OP_CLAMP:
        case GGML_OP_LEAKY_RELU: return true;
        default: return false;
    }
}

// The op makes each row from the same row of its first source, of whose elements it mixes.
bool mixes_rows(enum ggml_op op) {
    switch (op) {
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_ROPE:
        case GGML_OP_SUM_ROWS:
        case GGML_OP_MEAN:
        case GGML_OP_ARGSORT:
        case GGML_OP_TOP_K: return true;
        default: return false;
    }
}

// Returns the tokens of a node whose rows are each made from all elements of a row: known if those are for one token.
row_tokens of_whole_rows(const row_tokens & from) {
    return from.stride[0] == 0 ? from : unknown();
}

} // namespace

row_token_map::row_token_map(const llm_graph_params & params, ggml_context * ctx, ggml_tensor * tokens) : ctx(ctx) {
    const auto add = [&](const ggml_tensor * input, int axis) {
        if (input && input->ne[axis] == tokens->ne[1]) {
            row_tokens r;
            r.tokens       = tokens;
            r.stride[axis] = 1;
            rows[input]    = r;
        }
    };
    for (const auto & input : params.res->inputs) {
        if (const auto * inp = dynamic_cast<const llm_graph_input_embd *>(input.get())) {
            add(inp->tokens, 0);
            add(inp->embd, 1);
        } else if (const auto * inp = dynamic_cast<const llm_graph_input_embd_h *>(input.get())) {
            add(inp->tokens, 0);
            add(inp->embd, 1);
            add(inp->h, 1);
        } else if (const auto * inp = dynamic_cast<const llm_graph_input_pos *>(input.get())) {
            add(inp->pos, 0); // Models with several positions a token have a longer tensor, which only RoPE reads.
        }
    }
}

row_tokens row_token_map::of(const ggml_tensor * tensor) const {
    const auto it = rows.find(tensor);
    return it == rows.end() ? row_tokens() : it->second;
}

void row_token_map::visit(ggml_tensor * node) {
    row_tokens r = derive(node);
    for (int d = 0; d < 4; d++) {
        if (node->ne[d] == 1) {
            r.stride[d] = 0; // This makes equal meanings equal.
        }
    }
    if (!r.none()) {
        rows[node] = r;
    }
}

ggml_tensor * row_token_map::select(ggml_context * ctx, ggml_tensor * tokens, ggml_tensor * ids) {
    ggml_tensor * selected = ggml_get_rows(ctx, ggml_view_2d(ctx, tokens, 2, tokens->ne[1], tokens->nb[1], 0), ids);
    selected->flags |= GGML_TENSOR_FLAG_COMPUTE;
    ggml_format_name(selected, "%s (%s)", tokens->name, ids->name);
    return selected;
}

row_tokens row_token_map::derive_get_rows(const ggml_tensor * node) {
    const row_tokens from = of(node->src[0]);
    const row_tokens ids  = of(node->src[1]);
    if (!from.known || !ids.known) {
        return unknown();
    }
    if (ids.tokens) { // The look-up is made for each token.
        return with_strides(ids, { 0, ids.stride[0], ids.stride[1], ids.stride[2] });
    }
    if (!from.tokens) {
        return from;
    }
    const bool one_axis =
        from.stride[0] == 0 && from.stride[1] == (node->src[0]->ne[1] > 1 ? 1 : 0) && from.stride[2] == 0 && from.stride[3] == 0;
    if (!one_axis || !ggml_is_vector(node->src[1])) {
        return unknown();
    }
    // Some tokens are selected (those with outputs): the same ids select their entries.
    ggml_tensor *& tokens = selected[node->src[1]];
    if (!tokens) {
        tokens = select(ctx, from.tokens, node->src[1]);
    } else if (tokens->src[0]->view_src != from.tokens) {
        return unknown();
    }
    row_tokens r;
    r.tokens    = tokens;
    r.stride[1] = 1;
    return r;
}

row_tokens row_token_map::derive(ggml_tensor * node) {
    const row_tokens a = node->src[0] ? of(node->src[0]) : row_tokens();
    const row_tokens b = node->src[1] ? of(node->src[1]) : row_tokens();

    bool any = false;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        any = any || (node->src[i] && !of(node->src[i]).none());
    }
    if (!any) {
        return row_tokens();
    }

    if (is_elementwise(node->op)) {
        return a;
    }
    if (mixes_rows(node->op)) {
        return of_whole_rows(a);
    }
    switch (node->op) {
        case GGML_OP_ADD:
        case GGML_OP_SUB:
        case GGML_OP_MUL:
        case GGML_OP_DIV: return combined(broadcast(a, node->src[0], node), broadcast(b, node->src[1], node));
        case GGML_OP_GLU: return node->src[1] ? combined(a, b) : of_whole_rows(a); // The halves lie in one row, or in two tensors.
        case GGML_OP_ADD_ID: return a;
        case GGML_OP_DUP:
        case GGML_OP_CONT:
        case GGML_OP_RESHAPE: return a.known && a.tokens ? reshaped(a, node->src[0], node) : a;
        case GGML_OP_VIEW: return a.known && a.tokens ? viewed(a, node->src[0], node) : a;
        case GGML_OP_PERMUTE: return a.tokens ? permuted(a, node) : a;
        case GGML_OP_TRANSPOSE: return with_strides(a, { a.stride[1], a.stride[0], a.stride[2], a.stride[3] });
        case GGML_OP_CPY: // The rows of src[0] are written over src[1], in the order of its elements.
            return a.known && a.tokens ? reshaped(a, node->src[0], node) : a;
        case GGML_OP_SET_ROWS: // Writes a cache, and what is read from that belongs to the reader.
            return row_tokens();
        case GGML_OP_GET_ROWS: return derive_get_rows(node);
        case GGML_OP_CONCAT: {
            const row_tokens c = combined(a, b);
            return c.known && c.stride[ggml_get_op_params_i32(node, 0)] != 0 ? unknown() : c;
        }
        // The rows of src[0] may be for tokens too (keys, values), but that axis is summed over or becomes axis 0.
        case GGML_OP_MUL_MAT: return b.none() ? unknown() : of_whole_rows(b);
        case GGML_OP_MUL_MAT_ID: return b.none() ? unknown() : of_whole_rows(b);
        case GGML_OP_FLASH_ATTN_EXT: // Turns q [d, n_tokens, n_head, n_stream] into [d, n_head, n_tokens, n_stream].
            return with_strides(of_whole_rows(a), { 0, a.stride[2], a.stride[1], a.stride[3] });
        default: return unknown();
    }
}

} // namespace dqrelo
