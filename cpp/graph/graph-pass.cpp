// The pass over a finished graph. It finds each node that reads a weight which some delta changes, moves the node's op to a new node, and
// turns the old node, to which all consumers already point, into the delta op on top of the new one. One mechanism serves every
// architecture.
#include "graph/composed.h"
#include "context/context-state.h"
#include "context/delta.h"
#include "context/dqrelo-hooks.h"
#include "memory/placement.h"
#include "graph/row-owner.h"
#include "graph/weight-read.h"

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

using dqrelo::weight_read;

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

    bool can_reuse(const llm_graph_params & params) override { return owner->ne[1] == (int64_t) params.ubatch.n_tokens; }

private:
    const dqrelo_context & dctx;
    ggml_tensor *          owner; // F32 [2, n_tokens, 2]
};

class graph_pass {
public:
    graph_pass(const llama_model & model, const llm_graph_params & params) :
        dctx(*params.dqrelo),
        params(params),
        gf(params.res->get_gf()),
        ctx(params.res->get_ctx()),
        tokens(make_tokens()),
        owners(params, ctx, tokens),
        own_batch(params.dqrelo_key & 1) {
        for (const auto & [name, tensor] : model.tensors_by_name) {
            names.insert(name);
        }
        for (const auto & input : params.res->inputs) {
            if (const auto * inp = dynamic_cast<const llm_graph_input_out_ids *>(input.get())) {
                out_ids = inp->out_ids;
            }
        }
    }

    // Records how the graph reads the model's weights.
    void scan() {
        std::unordered_map<std::string, uint32_t> n_reads;
        for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            owners.visit(node);
            for (const weight_read & read : reads_of(node)) {
                dqrelo_usage & usage = dctx.usage[read.weight->name];
                usage.own_batch      = usage.own_batch.empty() ? read.own_batch : usage.own_batch;
                usage.n_reads        = std::max(usage.n_reads, ++n_reads[read.weight->name]);
                if (read.problem.empty() && is_composed(read.weight)) {
                    const dqrelo::read_shape shape = dqrelo::read_shape::of(read, layout_of(read));
                    if (std::find(usage.composed.begin(), usage.composed.end(), shape) == usage.composed.end()) {
                        usage.composed.push_back(shape);
                    }
                }
                if (!read.problem.empty()) {
                    usage.supported = false;
                    usage.problem   = read.problem;
                }
            }
        }
        for (const auto & [node, read] : scaled) {
            dqrelo_usage & usage = dctx.usage[read.weight->name];
            usage.supported      = false;
            usage.problem        = "has a scale tensor that the graph does not multiply onto its result";
        }
    }

    // Puts the deltas onto the graph. On failure `problem` says which tensor and why.
    bool rewrite(std::string & problem) {
        std::vector<ggml_tensor *> nodes(ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf));
        if (dctx.n_composed_nodes() > 0) {
            start_composed();
        }
        bool any = false;
        for (ggml_tensor * node : nodes) {
            owners.visit(node);
            std::vector<weight_read> reads = reads_of(node);
            // merged copies first: the others move the node's op, with the sources that it then has
            std::stable_partition(reads.begin(), reads.end(), [](const weight_read & read) { return read.swap; });
            for (weight_read & read : reads) {
                ggml_tensor * table = is_composed(read.weight) ? nullptr : dctx.tables.find(read.weight);
                if (!table && !is_changed_by_ops(read)) {
                    continue;
                }
                if (!carries(read, problem) || !has_room(read, problem)) {
                    return false;
                }
                if (!read.own_batch.empty() && !own_batch) {
                    continue; // no token of this ubatch has a delta that changes the weight: such a delta has ubatches of its own
                }
                read.swap ? swap(read, table) : attach(read, table);
                any       = true;
                any_table = any_table || table;
            }
        }
        if (any) {
            add_nodes(nodes);
        }
        if (any_table) {
            params.res->add_input(std::make_unique<input_owner>(dctx, tokens));
        }
        return true;
    }

private:
    ggml_tensor * make_tokens() const {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens, 2);
        ggml_set_name(t, "dqrelo_owner");
        ggml_set_input(t);
        return t;
    }

    // The nodes again in their order, each new one before the node that it feeds; what was left unselected stays so.
    void add_nodes(const std::vector<ggml_tensor *> & nodes) {
        ggml_graph_clear(gf);
        for (ggml_tensor * node : nodes) {
            const auto merged_root = node->view_src ? merged.find(node->view_src) : merged.end();
            if (merged_root != merged.end()) { // a view of the weight is one of the copy
                node->view_src = merged_root->second;
                node->data     = nullptr;
            }
            ggml_build_forward_order(gf, node);
        }
    }

    // The inputs are added even if no node comes to read them: they decide whether the graph may be used again.
    void start_composed() {
        plan        = dqrelo::row_plan::of(dctx, params.ubatch, params.n_outputs);
        auto inputs = std::make_unique<dqrelo::composed_inputs>(dctx, plan);
        composed    = std::make_unique<dqrelo::composed_graph>(
            ctx, plan, *inputs, [this](int32_t slot, const ggml_tensor * weight) { return find_composed(slot, weight); });
        params.res->add_input(std::move(inputs));
    }

    bool is_composed(const ggml_tensor * weight) {
        const auto known = how.find(weight);
        return (known != how.end() ? known->second : how[weight] = dqrelo::placement_of(weight).how) == dqrelo::method::composed;
    }

    const dqrelo::composed_weight * find_composed(int32_t slot, const ggml_tensor * weight) const {
        const dqrelo_delta & delta = *dctx.slots[slot].delta;
        const auto           pack  = delta.composed.find(dqrelo::placement_of(weight).buft);
        const int64_t        i     = delta.file->find(weight->name);
        return pack == delta.composed.end() || i < 0 ? nullptr : pack->second->find((size_t) i);
    }

    bool is_changed_by_ops(const weight_read & read) {
        return composed && is_composed(read.weight) && composed->changes(read.weight, layout_of(read).kind);
    }

    // Ordinary ops need rows that are numbered over all tokens, or over those with outputs.
    bool is_numbered(const dqrelo::row_owner & rows) const {
        const auto is_selection = [this](const ggml_tensor * t) {
            return t && t->src[0] && t->src[0]->view_src == tokens && t->src[1] == out_ids;
        };
        return rows.owner == tokens || is_selection(rows.owner);
    }

    dqrelo::composed_layout layout_of(const weight_read & read) const {
        dqrelo::composed_layout layout;
        layout.one_slot = read.swap || !read.own_batch.empty();
        if (!layout.one_slot) {
            const dqrelo::row_owner rows = owners.of(read.node);
            layout.kind                  = rows.owner == tokens ? dqrelo::ROWS_TOKENS : dqrelo::ROWS_OUTPUTS;
            std::copy_n(rows.stride, 4, layout.stride);
        }
        return layout;
    }

    // The graph's size was planned from what was checked; another graph may read weights more often.
    bool has_room(const weight_read & read, std::string & problem) const {
        const size_t n_nodes = composed ? (plan.slots.size() + 1) * dqrelo::composed_graph::MAX_NODES : 0;
        const bool   fits    = ggml_used_mem(ctx) + n_nodes * ggml_tensor_overhead() <= ggml_get_mem_size(ctx);
        if (!fits) {
            problem = std::string("tensor '") + read.weight->name +
                      "' is read by a graph with more nodes than those that were checked, and there is no room for them";
        }
        return fits;
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
    weight_read checked(weight_read read) {
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
        } else if (is_composed(read.weight) && read.form == DQRELO_FORM_MATMUL && read.weight->ne[2] > 1 &&
                   read.node->ne[2] != read.weight->ne[2] && read.node->ne[3] > 1) {
            read.problem =
                by + " with several rows of matrices for one of the stack and several sequences, which ordinary ops cannot follow";
        } else if (is_composed(read.weight) && !is_numbered(rows)) {
            read.own_batch = by + " for rows that are selected otherwise than by their outputs";
        }
        return read;
    }

    // The node's op moves to a new node, and the node becomes the delta on top of it: the operator with a table, or a sum with ordinary
    // ops.
    void attach(const weight_read & read, ggml_tensor * table) {
        ggml_tensor * node = read.node;
        ggml_tensor * base = ggml_new_tensor(ctx, node->type, GGML_MAX_DIMS, node->ne);
        base->op           = node->op;
        base->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE; // never OUTPUT: that stays with the node that consumers read
        memcpy(base->op_params, node->op_params, sizeof(node->op_params));
        memcpy(base->src, node->src, sizeof(node->src));
        ggml_format_name(base, "%s (base)", node->name);

        const auto    swapped = merged.find(read.x); // x is a weight too
        ggml_tensor * x       = swapped != merged.end() ? swapped->second : read.x ? read.x : base;
        if (!table) {
            composed->attach(read, layout_of(read), base, x);
            return;
        }
        const dqrelo::row_owner rows = read.own_batch.empty() ? owners.of(node) : first_token();
        ggml_dqrelo_set(node, read.form, base, x, read.ids, table, rows.owner, rows.stride + 1);
    }

    // The node reads weight + s * D_hat in place of the weight.
    void swap(const weight_read & read, ggml_tensor * table) {
        ggml_tensor *& copy = merged[read.weight];
        if (!copy) {
            const dqrelo::row_owner rows = first_token();
            copy = table ? ggml_dqrelo(ctx, DQRELO_FORM_ADD, read.weight, read.weight, nullptr, table, rows.owner, rows.stride + 1)
                         : composed->merged(read.weight);
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

    ggml_tensor * out_ids = nullptr; // I32 [n_outputs]: tokens with outputs

    bool own_batch;         // the ubatch has tokens of one delta and scale only, and that needs it
    bool any_table = false; // some node is the operator

    dqrelo::row_plan                                        plan;
    std::unique_ptr<dqrelo::composed_graph>                 composed; // null where no delta is composed of ordinary ops
    std::unordered_map<const ggml_tensor *, dqrelo::method> how;      // of weights

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
        LLAMA_LOG_ERROR(
            "dqrelo: a token of the batch belongs to several sequences that have different deltas; bind one delta to all of them\n");
        return false;
    }
    std::string problem;
    if (!graph_pass(model, params).rewrite(problem)) {
        LLAMA_LOG_ERROR("dqrelo: %s\n", problem.c_str());
        return false;
    }
    return true;
}

uint32_t dqrelo_graph_extra_nodes(const llama_model & model, const dqrelo_context * dctx) {
    // a base node (or merged copy) and a table for each weight, twice for one that is read twice (tied embeddings), and the owners
    return 2 * (uint32_t) model.n_tensors() + 32 + (dctx ? dctx->n_composed_nodes() + dqrelo::composed_graph::MAX_NODES : 0);
}
