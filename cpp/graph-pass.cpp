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

#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

// Writes, before each run, which slot and scale each token of the batch has.
class input_owner : public llm_graph_input_i {
public:
    input_owner(const dqrelo_context & dctx, ggml_tensor * owner) : dctx(dctx), owner(owner) {}

    void set_input(const llama_ubatch * ubatch) override {
        std::vector<float> data(2 * ubatch->n_tokens);
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            bool       agree = true;
            const auto b     = dctx.binding_of(ubatch->seq_id[i], ubatch->n_seq_id[i], agree);
            data[2 * i + 0]  = (float) b.slot;
            data[2 * i + 1]  = b.scale;
        }
        ggml_backend_tensor_set(owner, data.data(), 0, ggml_nbytes(owner));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return owner->ne[1] == (int64_t) params.ubatch.n_tokens;
    }

private:
    const dqrelo_context & dctx;
    ggml_tensor *          owner; // F32 [2, n_tokens]
};

// A read of a weight by a node.
struct weight_read {
    ggml_tensor * node   = nullptr; // whose result the delta is added to
    ggml_tensor * weight = nullptr;
    ggml_tensor * x      = nullptr; // activation, or ids
    dqrelo_form   form   = DQRELO_FORM_MATMUL;
    std::string   problem;          // why the op cannot do it, or empty
};

class graph_pass {
public:
    graph_pass(const llama_model & model, const llm_graph_params & params) : dctx(*params.dqrelo), params(params), gf(params.res->get_gf()), ctx(params.res->get_ctx()), tokens(make_tokens()), owners(params, ctx, tokens) {
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
                usage.elementwise    = usage.elementwise || read.form == DQRELO_FORM_MUL || read.form == DQRELO_FORM_ADD;
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
            for (const weight_read & read : reads_of(node)) {
                ggml_tensor * table = dctx.find_table(read.weight->name);
                if (!table) {
                    continue;
                }
                if (!read.problem.empty()) {
                    problem = std::string("tensor '") + read.weight->name + "' " + read.problem;
                    return false;
                }
                attach(read, table);
                any = true;
            }
        }
        if (!any) {
            return true;
        }
        // the nodes again in their order, each new one before the node that it feeds; what was left unselected stays so
        ggml_graph_clear(gf);
        for (ggml_tensor * node : nodes) {
            ggml_build_forward_order(gf, node);
        }
        params.res->add_input(std::make_unique<input_owner>(dctx, tokens));
        return true;
    }

private:
    ggml_tensor * make_tokens() const {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens);
        ggml_set_name(t, "dqrelo_owner");
        ggml_set_input(t);
        return t;
    }

    bool is_weight(const ggml_tensor * t) const {
        return t && t->op == GGML_OP_NONE && !(t->flags & GGML_TENSOR_FLAG_INPUT) && names.count(t->name) > 0;
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

    std::vector<weight_read> reads_of(ggml_tensor * node) {
        std::vector<weight_read> reads;
        // a matmul whose delta goes onto the multiplication by its scale
        const auto pending = scaled.find(node->src[0]);
        if (pending != scaled.end() && is_weight(node->src[1])) {
            weight_read read = pending->second;
            if (node->op == GGML_OP_MUL && scale_name(read.weight) == node->src[1]->name) {
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
            if (read.problem.empty() && read.form == DQRELO_FORM_MATMUL && !scale_name(read.weight).empty()) {
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
        if (node->op == GGML_OP_MUL_MAT && k == 0) {
            read.form = DQRELO_FORM_MATMUL;
            read.x    = node->src[1];
        } else if (node->op == GGML_OP_GET_ROWS && k == 0) {
            read.form = DQRELO_FORM_ROWS;
            read.x    = node->src[1];
        } else if (node->op == GGML_OP_MUL && k == 1) {
            read.form = DQRELO_FORM_MUL;
            read.x    = node->src[0];
        } else if (node->op == GGML_OP_ADD && k == 1) {
            read.form = DQRELO_FORM_ADD;
            read.x    = node->src[0];
        } else {
            read.problem = std::string("is read by ") + ggml_op_desc(node) + " ('" + node->name + "'), a form that the operator does not support";
        }
        return read;
    }

    // Completes `problem` with what the op demands of shapes, types and rows.
    weight_read checked(weight_read read) const {
        if (!read.problem.empty()) {
            return read;
        }
        const ggml_tensor * node   = read.node;
        const auto          refuse = [&](const std::string & why) {
            read.problem = std::string("is read by ") + ggml_op_desc(node) + " ('" + node->name + "') " + why;
            return read;
        };
        const dqrelo::row_owner rows = owners.of(node);
        if (read.weight->ne[2] > 1 || read.weight->ne[3] > 1) {
            return refuse("as a stack of matrices, which the operator does not support");
        }
        if (node->view_src) {
            return refuse("in place, which the operator does not support");
        }
        if (node->type != GGML_TYPE_F32 || (read.form != DQRELO_FORM_ROWS && (read.x->type != GGML_TYPE_F32 || read.x->nb[0] != sizeof(float)))) {
            return refuse("with activations that are not F32");
        }
        if (!rows.known || !rows.owner || rows.stride[0] != 0) {
            return refuse("where it is not known which token each row is for");
        }
        return read;
    }

    void attach(const weight_read & read, ggml_tensor * table) {
        ggml_tensor *           node = read.node;
        const dqrelo::row_owner rows = owners.of(node);

        ggml_tensor * base = ggml_new_tensor(ctx, node->type, GGML_MAX_DIMS, node->ne);
        base->op           = node->op;
        base->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE; // never OUTPUT: that stays with the node that consumers read
        memcpy(base->op_params, node->op_params, sizeof(node->op_params));
        memcpy(base->src, node->src, sizeof(node->src));
        ggml_format_name(base, "%s (base)", node->name);

        ggml_dqrelo_set(node, read.form, base, read.x, table, rows.owner, rows.stride + 1);
    }

    dqrelo_context &         dctx;
    const llm_graph_params & params;
    ggml_cgraph *            gf;
    ggml_context *           ctx;
    ggml_tensor *            tokens; // F32 [2, n_tokens]
    dqrelo::row_owners       owners;

    std::unordered_set<std::string>                      names;  // of the model's tensors
    std::unordered_map<const ggml_tensor *, weight_read> scaled; // matmuls whose *.scale multiplication is still to come
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
    // a base node and a table for each weight, twice for one that is read twice (tied embeddings), and the owners
    return 2 * (uint32_t) model.n_tensors() + 32;
}
