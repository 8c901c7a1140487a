#include "graph/read-finder.h"

#include "graph/traced-graph.h"

#include "llama-model.h"

namespace dqrelo {

namespace {

// Returns which form of the op a read is, from the node's op and the place of the weight among its sources.
weight_read classified(ggml_tensor * node, int k) {
    weight_read read;
    read.node   = node;
    read.weight = node->src[k];
    read.k      = k;
    if (node->op == GGML_OP_MUL_MAT && k == 0) {
        read.form = DQRELO_FORM_MATMUL;
        read.x    = node->src[1];
    } else if (node->op == GGML_OP_MUL_MAT_ID && k == 0) {
        read.form = DQRELO_FORM_MATMUL_ID;
        read.x    = node->src[1];
        read.ids  = node->src[2];
    } else if (node->op == GGML_OP_GET_ROWS && k == 0) {
        read.form = DQRELO_FORM_ROWS;
        read.ids  = node->src[1];
    } else if (node->op == GGML_OP_MUL && k == 1) {
        read.form = DQRELO_FORM_MUL;
        read.x    = node->src[0];
    } else if (node->op == GGML_OP_ADD && k == 1) {
        read.form = DQRELO_FORM_ADD;
    } else if (node->op == GGML_OP_ADD_ID && k == 1) {
        read.form = DQRELO_FORM_ADD;
        read.ids  = node->src[2];
    } else {
        read.merged_copy = true;
    }
    return read;
}

// Returns whether the op's form does what the node does, whatever its rows belong to.
bool has_form(const weight_read & read) {
    const ggml_tensor * node   = read.node;
    const ggml_tensor * weight = read.weight;
    if (read.merged_copy || node->view_src || node->type != GGML_TYPE_F32 || weight->ne[3] > 1) {
        return false; // The node works in place, or is not F32, or the weight has four dimensions.
    }
    if (read.x && (read.x->type != GGML_TYPE_F32 || read.x->nb[0] != sizeof(float))) {
        return false;
    }
    if (read.ids && read.ids->type != GGML_TYPE_I32) {
        return false;
    }
    return read.form != DQRELO_FORM_ROWS || weight->ne[2] == 1;
}

} // namespace

read_finder::read_finder(const llama_model & model, traced_graph & graph) : graph(graph) {
    for (const auto & [name, tensor] : model.tensors_by_name) {
        names.insert(name);
    }
}

bool read_finder::is_weight(const ggml_tensor * t) const {
    return t && t->op == GGML_OP_NONE && !(t->flags & GGML_TENSOR_FLAG_INPUT) && names.count(t->name) > 0;
}

// Returns the scale tensor `*.scale` of a weight `*.weight`, which the graph multiplies onto the matmul's result; an empty string if there
// is none.
std::string read_finder::scale_tensor_of(const ggml_tensor * weight) const {
    const std::string name = weight->name;
    const size_t      dot  = name.rfind(".weight");
    if (dot == std::string::npos || dot + 7 != name.size()) {
        return "";
    }
    const std::string scale = name.substr(0, dot) + ".scale";
    return names.count(scale) > 0 ? scale : "";
}

// Returns the weight that a tensor is, or whose values it selects or repeats: the scales of a token's experts.
const ggml_tensor * read_finder::source_weight(const ggml_tensor * t) const {
    while (t && (t->op == GGML_OP_RESHAPE || t->op == GGML_OP_REPEAT || t->op == GGML_OP_GET_ROWS)) {
        t = t->src[0];
    }
    return is_weight(t) ? t : nullptr;
}

std::vector<weight_read> read_finder::reads_of(ggml_tensor * node) {
    std::vector<weight_read> reads;
    // The node may multiply the result of a matmul by its scale tensor.
    const auto pending = awaiting_scale.find(node->src[0]);
    if (pending != awaiting_scale.end() && source_weight(node->src[1])) {
        weight_read read = pending->second;
        if (node->op == GGML_OP_MUL && scale_tensor_of(read.weight) == source_weight(node->src[1])->name) {
            awaiting_scale.erase(pending);
            read.node = node;
            reads.push_back(decided(read));
            return reads;
        }
        if (node->op == GGML_OP_ADD) { // Adds the bias, which is scaled too.
            awaiting_scale.erase(pending);
            awaiting_scale[node] = read;
        }
    }
    for (int k = 0; k < GGML_MAX_SRC; k++) {
        if (!is_weight(node->src[k])) {
            continue;
        }
        weight_read read = classified(node, k);
        if (!read.merged_copy && (read.form == DQRELO_FORM_MATMUL || read.form == DQRELO_FORM_MATMUL_ID) &&
            !scale_tensor_of(read.weight).empty()) {
            awaiting_scale[node] = read;
            continue;
        }
        reads.push_back(decided(read));
    }
    return reads;
}

std::vector<weight_read> read_finder::unfinished() const {
    std::vector<weight_read> reads;
    for (const auto & [node, read] : awaiting_scale) {
        reads.push_back(read);
    }
    return reads;
}

// Decides between the op on the node's result and a merged copy of the weight, and completes `own_ubatch` and `problem`.
weight_read read_finder::decided(weight_read read) {
    const std::string by = std::string("is read by ") + ggml_op_desc(read.node) + " ('" + read.node->name + "')";
    if (!has_form(read)) {
        read.merged_copy = true;
        read.own_ubatch  = by + " for all tokens at once";
        if (read.weight->type != GGML_TYPE_F32 || !ggml_is_contiguous(read.weight)) {
            read.problem = by + ", a form that the operator supports for F32 tensors only, not " + ggml_type_name(read.weight->type);
        }
        return read;
    }
    const row_tokens rows            = graph.tokens_of(read.node);
    const bool       one_for_experts = read.form != DQRELO_FORM_MATMUL_ID || rows.stride[1] == 0;
    if (!rows.known || !rows.tokens || rows.stride[0] != 0 || !one_for_experts) {
        read.own_ubatch = by + " where it is not known which token each row is for";
    } else if (graph.is_composed(read.weight) && read.form == DQRELO_FORM_MATMUL && read.weight->ne[2] > 1 &&
               read.node->ne[2] != read.weight->ne[2] && read.node->ne[3] > 1) {
        read.problem = by + " with several rows of matrices for one of the stack and several sequences, which ordinary ops cannot follow";
    } else if (graph.is_composed(read.weight) && !graph.is_numbered(rows)) {
        read.own_ubatch = by + " for rows that are selected otherwise than by their outputs";
    }
    return read;
}

} // namespace dqrelo
