#include "graph/traced-graph.h"

#include "context/context-state.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-graph.h"

#include <algorithm>
#include <memory>

namespace dqrelo {

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

    bool can_reuse(const llm_graph_params & params) override { return owner->ne[1] == (int64_t) params.ubatch.n_tokens; }

private:
    const dqrelo_context & dctx;
    ggml_tensor *          owner; // F32 [2, n_tokens, 2]
};

ggml_tensor * make_tokens(const llm_graph_params & params, ggml_context * ctx) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens, 2);
    ggml_set_name(t, "dqrelo_owner");
    ggml_set_input(t);
    return t;
}

} // namespace

traced_graph::traced_graph(const llm_graph_params & params) :
    params(params), gf(params.res->get_gf()), ctx(params.res->get_ctx()), tokens(make_tokens(params, ctx)), owners(params, ctx, tokens) {
    for (const auto & input : params.res->inputs) {
        if (const auto * inp = dynamic_cast<const llm_graph_input_out_ids *>(input.get())) {
            out_ids = inp->out_ids;
        }
    }
}

std::vector<ggml_tensor *> traced_graph::nodes() const {
    return { ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf) };
}

row_owner traced_graph::owner_in_own_batch() const {
    row_owner rows;
    rows.owner = tokens;
    return rows;
}

bool traced_graph::is_composed(const ggml_tensor * weight) {
    const auto known = how.find(weight);
    return (known != how.end() ? known->second : how[weight] = placement_of(weight).how) == method::composed;
}

bool traced_graph::is_numbered(const row_owner & rows) const {
    const auto is_selection = [this](const ggml_tensor * t) {
        return t && t->src[0] && t->src[0]->view_src == tokens && t->src[1] == out_ids;
    };
    return rows.owner == tokens || is_selection(rows.owner);
}

composed_layout traced_graph::layout_of(const weight_read & read) const {
    composed_layout layout;
    layout.one_slot = read.swap || !read.own_batch.empty();
    if (!layout.one_slot) {
        const row_owner rows = owners.of(read.node);
        layout.kind          = rows.owner == tokens ? ROWS_TOKENS : ROWS_OUTPUTS;
        std::copy_n(rows.stride, 4, layout.stride);
    }
    return layout;
}

void traced_graph::add_token_input() {
    params.res->add_input(std::make_unique<input_owner>(*params.dqrelo, tokens));
}

} // namespace dqrelo
