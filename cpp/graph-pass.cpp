// The pass over a finished graph. It finds each node that reads a weight which some delta changes, moves the node's op to a new node, and turns the old node, to
// which all consumers already point, into the delta op on top of the new one. One mechanism serves every architecture.
#include "context-state.h"
#include "dqrelo-hooks.h"
#include "row-owner.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

// Writes, before each run, which slot and scale each token of the batch has, and the order of the tokens by slot.
class input_owner : public llm_graph_input_i {
public:
    input_owner(const dqrelo_context & dctx, ggml_tensor * owner) : dctx(dctx), owner(owner) {}

    void set_input(const llama_ubatch * ubatch) override {
        std::vector<float> data(4 * ubatch->n_tokens);
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            bool       agree = true;
            const auto b     = dctx.binding_of(ubatch->seq_id[i], ubatch->n_seq_id[i], agree);
            data[2 * i + 0]  = (float) b.slot;
            data[2 * i + 1]  = b.scale;
        }
        ggml_dqrelo_set_order(data.data(), ubatch->n_tokens);
        ggml_backend_tensor_set(owner, data.data(), 0, ggml_nbytes(owner));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return owner->ne[1] == (int64_t) params.ubatch.n_tokens;
    }

private:
    const dqrelo_context & dctx;
    ggml_tensor *          owner; // F32 [2, n_tokens, 2]
};

// A read of a weight by a node.
struct weight_read {
    ggml_tensor * node   = nullptr; // whose result the delta is added to
    ggml_tensor * weight = nullptr;
    int           k      = 0;       // which of the node's sources the weight is
    ggml_tensor * x      = nullptr; // activation
    ggml_tensor * ids    = nullptr; // rows or matrices that are selected
    dqrelo_form   form   = DQRELO_FORM_MATMUL;

    bool        swap = false; // the node reads a copy of the weight merged with its delta, in place of the weight
    std::string own_batch;         // why that is only right in a ubatch whose tokens all have one delta and scale, or empty
    std::string problem;           // why the op cannot do it, or empty
};

class graph_pass {
public:
    graph_pass(const llama_model & model, const llm_graph_params & params) : dctx(*params.dqrelo), params(params), gf(params.res->get_gf()), ctx(params.res->get_ctx()), tokens(make_tokens()), owners(params, ctx, tokens), own_batch(params.dqrelo_key & 1) {
        for (const auto & [name, tensor] : model.tensors_by_name) {
            names.insert(name);
        }
    }

    // Records how the graph reads the model's weights.
    void scan() {
        for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            owners.visit(node);
            for (const weight_read & read : reads_of(node)) {
                dqrelo_usage & usage = dctx.usage[read.weight->name];
                usage.own_batch      = usage.own_batch.empty() ? read.own_batch : usage.own_batch;
                if (!read.problem.empty()) {
                    usage.supported = false;
                    usage.problem   = read.problem;
                }
            }
        }
        for (const auto & [node, read] : scaled) {
            dctx.usage[read.weight->name] = { false, "has a scale tensor that the graph does not multiply onto its result" };
        }
    }

    // Puts the deltas onto the graph. On failure `problem` says which tensor and why.
    bool rewrite(std::string & problem) {
        std::vector<ggml_tensor *> nodes(ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf));
        bool                       any = false;
        for (ggml_tensor * node : nodes) {
            owners.visit(node);
            std::vector<weight_read> reads = reads_of(node);
            // merged copies first: the others move the node's op, with the sources that it then has
            std::stable_partition(reads.begin(), reads.end(), [](const weight_read & read) { return read.swap; });
            for (weight_read & read : reads) {
                ggml_tensor * table = dctx.find_table(read.weight->name);
                if (!table) {
                    continue;
                }
                if (!carries(read, problem)) {
                    return false;
                }
                if (!read.own_batch.empty() && !own_batch) {
                    continue; // no token of this ubatch has a delta that changes the weight: such a delta has ubatches of its own
                }
                read.swap ? swap(read, table) : attach(read, table);
                any = true;
            }
        }
        if (!any) {
            return true;
        }
        // the nodes again in their order, each new one before the node that it feeds; what was left unselected stays so
        ggml_graph_clear(gf);
        for (ggml_tensor * node : nodes) {
            const auto merged_root = node->view_src ? merged.find(node->view_src) : merged.end();
            if (merged_root != merged.end()) { // a view of the weight is one of the copy
                node->view_src = merged_root->second;
                node->data     = nullptr;
            }
            ggml_build_forward_order(gf, node);
        }
        params.res->add_input(std::make_unique<input_owner>(dctx, tokens));
        return true;
    }

private:
    ggml_tensor * make_tokens() const {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens, 2);
        ggml_set_name(t, "dqrelo_owner");
        ggml_set_input(t);
        return t;
    }

    bool is_weight(const ggml_tensor * t) const {
        return t && t->op == GGML_OP_NONE && !(t->flags & GGML_TENSOR_FLAG_INPUT) && names.count(t->name) > 0;
    }

    bool carries(const weight_read & read, std::string & problem) const {
        const auto  used    = dctx.usage.find(read.weight->name);
        const bool  checked = used != dctx.usage.end() && !used->second.own_batch.empty();
        std::string why     = read.problem;
        if (why.empty() && !own_batch && !checked) {
            why = read.own_batch; // this graph reads the weight otherwise than those that were checked
        }
        if (!why.empty()) {
            problem = std::string("tensor '") + read.weight->name + "' " + why;
        }
        return why.empty();
    }

    // `*.scale` of a weight `*.weight`: a tensor that the graph multiplies onto the matmul's result, or an empty string
    std::string scale_name(const ggml_tensor * weight) const {
        const std::string name = weight->name;
        const size_t      dot  = name.rfind(".weight");
        if (dot == std::string::npos || dot + 7 != name.size()) {
            return "";
        }
        const std::string scale = name.substr(0, dot) + ".scale";
        return names.count(scale) > 0 ? scale : "";
    }

    // The weight that a tensor is, or whose values it selects or repeats: the scales of a token's experts.
    const ggml_tensor * source_weight(const ggml_tensor * t) const {
        while (t && (t->op == GGML_OP_RESHAPE || t->op == GGML_OP_REPEAT || t->op == GGML_OP_GET_ROWS)) {
            t = t->src[0];
        }
        return is_weight(t) ? t : nullptr;
    }

    std::vector<weight_read> reads_of(ggml_tensor * node) {
        std::vector<weight_read> reads;
        // a matmul whose delta goes onto the multiplication by its scale
        const auto pending = scaled.find(node->src[0]);
        if (pending != scaled.end() && source_weight(node->src[1])) {
            weight_read read = pending->second;
            if (node->op == GGML_OP_MUL && scale_name(read.weight) == source_weight(node->src[1])->name) {
                scaled.erase(pending);
                read.node = node;
                reads.push_back(checked(read));
                return reads;
            }
            if (node->op == GGML_OP_ADD) { // the bias, which is scaled too
                scaled.erase(pending);
                scaled[node] = read;
            }
        }
        for (int k = 0; k < GGML_MAX_SRC; k++) {
            if (!is_weight(node->src[k])) {
                continue;
            }
            weight_read read = classified(node, k);
            if (!read.swap && (read.form == DQRELO_FORM_MATMUL || read.form == DQRELO_FORM_MATMUL_ID) && !scale_name(read.weight).empty()) {
                scaled[node] = read;
                continue;
            }
            reads.push_back(checked(read));
        }
        return reads;
    }

    // Which form of the op a read is, from the node's op and the place of the weight among its sources.
    static weight_read classified(ggml_tensor * node, int k) {
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
            read.swap = true;
        }
        return read;
    }

    // Whether the op's form does what the node does, whatever its rows belong to.
    static bool has_form(const weight_read & read) {
        const ggml_tensor * node   = read.node;
        const ggml_tensor * weight = read.weight;
        if (read.swap || node->view_src || node->type != GGML_TYPE_F32 || weight->ne[3] > 1) {
            return false; // in place, or not F32
        }
        if (read.x && (read.x->type != GGML_TYPE_F32 || read.x->nb[0] != sizeof(float))) {
            return false;
        }
        if (read.ids && read.ids->type != GGML_TYPE_I32) {
            return false;
        }
        return read.form != DQRELO_FORM_ROWS || weight->ne[2] == 1;
    }

    // Decides between the op on the node's result and a merged copy of the weight, and completes `own_batch` and `problem`.
    weight_read checked(weight_read read) const {
        const std::string by = std::string("is read by ") + ggml_op_desc(read.node) + " ('" + read.node->name + "')";
        if (!has_form(read)) {
            read.swap      = true;
            read.own_batch = by + " for all tokens at once";
            if (read.weight->type != GGML_TYPE_F32 || !ggml_is_contiguous(read.weight)) {
                read.problem = by + ", a form that the operator supports for F32 tensors only, not " + ggml_type_name(read.weight->type);
            }
            return read;
        }
        const dqrelo::row_owner rows            = owners.of(read.node);
        const bool              one_for_experts = read.form != DQRELO_FORM_MATMUL_ID || rows.stride[1] == 0;
        if (!rows.known || !rows.owner || rows.stride[0] != 0 || !one_for_experts) {
            read.own_batch = by + " where it is not known which token each row is for";
        }
        return read;
    }

    // The node's op moves to a new node, and the node becomes the delta on top of it.
    void attach(const weight_read & read, ggml_tensor * table) {
        ggml_tensor * node = read.node;
        ggml_tensor * base = ggml_new_tensor(ctx, node->type, GGML_MAX_DIMS, node->ne);
        base->op           = node->op;
        base->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE; // never OUTPUT: that stays with the node that consumers read
        memcpy(base->op_params, node->op_params, sizeof(node->op_params));
        memcpy(base->src, node->src, sizeof(node->src));
        ggml_format_name(base, "%s (base)", node->name);

        const dqrelo::row_owner rows    = read.own_batch.empty() ? owners.of(node) : first_token();
        const auto              swapped = merged.find(read.x); // x is a weight too
        ggml_tensor *           x       = swapped != merged.end() ? swapped->second : read.x ? read.x
                                                                                             : base;
        ggml_dqrelo_set(node, read.form, base, x, read.ids, table, rows.owner, rows.stride + 1);
    }

    // The node reads weight + s * D_hat in place of the weight.
    void swap(const weight_read & read, ggml_tensor * table) {
        ggml_tensor *& copy = merged[read.weight];
        if (!copy) {
            const dqrelo::row_owner rows = first_token();
            copy                         = ggml_dqrelo(ctx, DQRELO_FORM_ADD, read.weight, read.weight, nullptr, table, rows.owner, rows.stride + 1);
            ggml_format_name(copy, "%s (merged)", read.weight->name);
        }
        copy->flags |= read.node->flags & GGML_TENSOR_FLAG_COMPUTE;
        read.node->src[read.k] = copy;
    }

    // In a ubatch of one delta, every row belongs to the first token's.
    dqrelo::row_owner first_token() const {
        dqrelo::row_owner rows;
        rows.owner = tokens;
        return rows;
    }

    dqrelo_context &         dctx;
    const llm_graph_params & params;
    ggml_cgraph *            gf;
    ggml_context *           ctx;
    ggml_tensor *            tokens; // F32 [2, n_tokens, 2]
    dqrelo::row_owners       owners;

    bool own_batch; // the ubatch has tokens of one delta and scale only, and that needs it

    std::unordered_set<std::string>                        names;  // of the model's tensors
    std::unordered_map<const ggml_tensor *, weight_read>   scaled; // matmuls whose *.scale multiplication is still to come
    std::unordered_map<const ggml_tensor *, ggml_tensor *> merged; // weight -> its copy with the delta
};

} // namespace

bool dqrelo_graph_pass(const llama_model & model, const llm_graph_params & params) {
    if (!params.dqrelo) {
        return true;
    }
    if (params.dqrelo->scanning) {
        graph_pass(model, params).scan();
        return true;
    }
    if (params.dqrelo_key == 0) {
        return true;
    }
    if (params.dqrelo_key == UINT64_MAX) {
        LLAMA_LOG_ERROR("dqrelo: a token of the batch belongs to several sequences that have different deltas; bind one delta to all of them\n");
        return false;
    }
    std::string problem;
    if (!graph_pass(model, params).rewrite(problem)) {
        LLAMA_LOG_ERROR("dqrelo: %s\n", problem.c_str());
        return false;
    }
    return true;
}

uint32_t dqrelo_graph_extra_nodes(const llama_model & model) {
    // a base node (or merged copy) and a table for each weight, twice for one that is read twice (tied embeddings), and the owners
    return 2 * (uint32_t) model.n_tensors() + 32;
}
