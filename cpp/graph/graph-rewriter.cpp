#include "graph/graph-rewriter.h"

#include "context/context-state.h"
#include "context/delta.h"
#include "graph/traced-graph.h"
#include "graph/weight-usage.h"

#include "cpu/isa.h"
#include "ggml-impl.h"
#include "llama-graph.h"
#include "repacked.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace dqrelo {

namespace {

// Returns whether the environment has DQRELO_FOLD=value.
bool is_set(const char * value) {
    static const char * given = getenv("DQRELO_FOLD");
    return given && strcmp(given, value) == 0;
}

// Returns whether the operator multiplies with weights of the type faster than ggml and the delta's own products take together
// (docs/operator.md). Where it multiplies in F32, that are those with many bits, and of the others those of which ggml multiplies a row of
// W with a row of x.
bool has_fold(ggml_type type, bool is_stack) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0: return true;
        default: break;
    }
    const bool is_one_by_one = type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1;
    return ggml_is_quantized(type) && (dqrelo_isa_chosen() != DQRELO_ISA_NEON || (is_one_by_one && !is_stack));
}

// Returns whether the node multiplies tokens with the weight, or with experts of it, and does nothing else, and has enough tokens for rows
// to be folded.
bool is_plain_product(const weight_read & read) {
    const ggml_tensor * node = read.node;
    const ggml_tensor * w    = read.weight;
    if (node->src[0] != w || node->src[1] != read.x) {
        return false;
    }
    if (node->op == GGML_OP_MUL_MAT_ID) {
        return node->src[2] == read.ids && node->ne[2] >= ggml_dqrelo_long_tokens(DQRELO_FOLD_EXPERT_ROWS, w->ne[2], node->ne[1]);
    }
    return node->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(node, 1) == 0 && node->ne[1] >= DQRELO_FOLD_ROWS && ggml_is_matrix(node) &&
           ggml_is_matrix(w) && ggml_is_matrix(read.x);
}

// The same of a GPU's operator, which rounds to F16 and has no experts.
bool has_device_fold(const weight_read & read) {
    const ggml_type type = read.weight->type;
    return read.node->op == GGML_OP_MUL_MAT && (type == GGML_TYPE_F16 || type == GGML_TYPE_BF16);
}

} // namespace

graph_rewriter::graph_rewriter(const dqrelo_context & dctx, traced_graph & graph) :
    dctx(dctx), graph(graph), own_ubatch(graph_key::decode(graph.params.dqrelo_key).is == graph_key::state::own_ubatch) {
    if (dctx.n_composed_nodes() > 0) {
        start_composed();
    }
}

bool graph_rewriter::put(std::vector<weight_read> reads, std::string & problem) {
    // Merged copies come first: the others move the node's op, with the sources that it then has.
    std::stable_partition(reads.begin(), reads.end(), [](const weight_read & read) { return read.merged_copy; });
    for (const weight_read & read : reads) {
        if (!is_changed(read)) {
            continue;
        }
        ggml_tensor * table = table_of(read.weight);
        if (!carries(read, problem) || !has_room(read, problem)) {
            return false;
        }
        if (!read.own_ubatch.empty() && !own_ubatch) {
            // No token of this ubatch has a delta that changes the weight, as such a delta has ubatches of its own.
            continue;
        }
        read.merged_copy ? read_merged_copy(read, table) : attach(read, table);
        any_table = any_table || table;
    }
    return true;
}

void graph_rewriter::finish(const std::vector<ggml_tensor *> & nodes) {
    add_nodes(nodes);
    if (any_table) {
        graph.add_token_input();
    }
}

// The inputs are added even if no node comes to read them: they decide whether the graph may be used again.
void graph_rewriter::start_composed() {
    plan        = row_plan::of(dctx, graph.params.ubatch, graph.params.n_outputs);
    auto inputs = std::make_unique<composed_inputs>(dctx, plan);
    composed    = std::make_unique<composed_graph>(
        graph.ctx, plan, *inputs, [this](int32_t delta_index, const ggml_tensor * weight) { return find_composed(delta_index, weight); });
    graph.params.res->add_input(std::move(inputs));
}

const composed_weight * graph_rewriter::find_composed(int32_t delta_index, const ggml_tensor * weight) const {
    const dqrelo_delta & delta = *dctx.active[delta_index].delta;
    const auto           pack  = delta.composed.find(placement_of(weight).buft);
    const int64_t        i     = delta.file->find(weight->name);
    return pack == delta.composed.end() || i < 0 ? nullptr : pack->second->find((size_t) i);
}

// Returns the weight's table, or nullptr if no delta so far has changed it by the operator.
ggml_tensor * graph_rewriter::table_of(const ggml_tensor * weight) {
    return graph.is_composed(weight) ? nullptr : dctx.tables.find(weight);
}

bool graph_rewriter::is_changed(const weight_read & read) {
    return table_of(read.weight) || is_changed_by_ops(read);
}

bool graph_rewriter::is_changed_by_ops(const weight_read & read) {
    return composed && graph.is_composed(read.weight) && composed->changes(read.weight, graph.layout_of(read).kind);
}

// The graph's size was planned from what was checked; another graph may read weights more often.
bool graph_rewriter::has_room(const weight_read & read, std::string & problem) const {
    const size_t n_nodes = composed ? (plan.deltas.size() + 1) * composed_graph::MAX_NODES : 0;
    const bool   fits    = ggml_used_mem(graph.ctx) + n_nodes * ggml_tensor_overhead() <= ggml_get_mem_size(graph.ctx);
    if (!fits) {
        problem = std::string("tensor '") + read.weight->name +
                  "' is read by a graph with more nodes than those that were checked, and there is no room for them";
    }
    return fits;
}

bool graph_rewriter::carries(const weight_read & read, std::string & problem) const {
    const weight_usage * used     = dctx.usage ? dctx.usage->find(read.weight->name) : nullptr;
    const bool           is_known = used && !used->own_ubatch.empty();
    std::string          why      = read.problem;
    if (why.empty() && !own_ubatch && !is_known) {
        why = read.own_ubatch; // This graph reads the weight otherwise than those that were checked.
    }
    if (!why.empty()) {
        problem = std::string("tensor '") + read.weight->name + "' " + why;
    }
    return why.empty();
}

// The operator may compute the base's product itself, for many rows, where it would be ggml's plain product, and no one watches the graph's
// nodes. On the CPU that is a weight in its own layout, with no other device that takes large products off the CPU. On GPUs, none of which
// has ever run it, it has to be asked for.
bool graph_rewriter::can_fold(const weight_read & read) const {
    const ggml_tensor * node = read.node;
    const ggml_tensor * w    = read.weight;
    if (is_set("0") || !is_plain_product(read) || ggml_nrows(node) > DQRELO_FOLD_MAX_ROWS || merged.count(read.x) > 0 || !w->buffer ||
        graph.params.cparams.cb_eval) {
        return false;
    }
    if (placement_of(w).how == method::fused) {
        return is_set("1") && has_device_fold(read);
    }
    const bool is_stack = node->op == GGML_OP_MUL_MAT_ID;
    const bool is_read  = ggml_backend_buffer_is_host(w->buffer) || dqrelo_can_restore(w);
    return has_fold(w->type, is_stack) && is_read && ggml_backend_sched_get_n_backends(graph.params.sched) == 1;
}

// The node's op moves to a new node.
ggml_tensor * graph_rewriter::base_node(ggml_tensor * node) {
    ggml_tensor * base = ggml_new_tensor(graph.ctx, node->type, GGML_MAX_DIMS, node->ne);
    base->op           = node->op;
    base->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE; // The flag OUTPUT stays with the node that consumers read.
    memcpy(base->op_params, node->op_params, sizeof(node->op_params));
    memcpy(base->src, node->src, sizeof(node->src));
    ggml_format_name(base, "%s (base)", node->name);
    return base;
}

// The node becomes the deltas on top of what it was: the operator with a table, once for each part of the rows' blends, of which the first
// may compute what the node was; or a sum with ordinary ops.
void graph_rewriter::attach(const weight_read & read, ggml_tensor * table) {
    ggml_tensor * node   = read.node;
    const auto    x_copy = merged.find(read.x); // The activation may be a weight too.
    const bool    folds  = table && can_fold(read);
    ggml_tensor * base   = folds ? nullptr : base_node(node);
    ggml_tensor * x      = x_copy != merged.end() ? x_copy->second : read.x ? read.x : base;
    if (!table) {
        composed->attach(read, graph.layout_of(read), base, x);
        return;
    }
    for (int32_t part = 0; part < graph.n_parts(); part++) {
        const row_tokens rows = read.own_ubatch.empty() ? graph.tokens_of(node, part) : graph.first_token(part);
        const bool       last = part + 1 == graph.n_parts();
        ggml_tensor *    sum  = last ? node : ggml_new_tensor(graph.ctx, node->type, GGML_MAX_DIMS, node->ne);
        ggml_dqrelo_set(sum, read.form, base ? base : sum, x, read.ids, table, rows.tokens, rows.stride + 1);
        if (!base) {
            ggml_dqrelo_fold(sum, read.weight);
        }
        sum->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE;
        base = sum;
    }
}

ggml_tensor * graph_rewriter::merged_copy(ggml_tensor * weight, ggml_tensor * table) {
    ggml_tensor * copy = weight;
    for (int32_t part = 0; part < graph.n_parts(); part++) {
        const row_tokens rows = graph.first_token(part);
        copy                  = ggml_dqrelo(graph.ctx, DQRELO_FORM_ADD, copy, copy, nullptr, table, rows.tokens, rows.stride + 1);
    }
    return copy;
}

// The node reads weight + s * D_hat in place of the weight.
void graph_rewriter::read_merged_copy(const weight_read & read, ggml_tensor * table) {
    ggml_tensor *& copy = merged[read.weight];
    if (!copy) {
        copy = table ? merged_copy(read.weight, table) : composed->merged(read.weight);
        ggml_format_name(copy, "%s (merged)", read.weight->name);
    }
    for (ggml_tensor * t = copy; t != read.weight; t = t->src[0]) {
        t->flags |= read.node->flags & GGML_TENSOR_FLAG_COMPUTE;
    }
    read.node->src[read.k] = copy;
}

// The nodes again in their order, each new one before the node that it feeds; what was left unselected stays so.
void graph_rewriter::add_nodes(const std::vector<ggml_tensor *> & nodes) {
    ggml_graph_clear(graph.gf);
    for (ggml_tensor * node : nodes) {
        const auto merged_root = node->view_src ? merged.find(node->view_src) : merged.end();
        if (merged_root != merged.end()) { // A view of the weight becomes one of the copy.
            node->view_src = merged_root->second;
            node->data     = nullptr;
        }
        ggml_build_forward_order(graph.gf, node);
    }
}

} // namespace dqrelo
