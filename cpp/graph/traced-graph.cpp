#include "graph/traced-graph.h"

#include "context/context-state.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-graph.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

namespace dqrelo {

namespace {

// Writes, before each run, which delta and request scale each token of the ubatch has, and the tokens sorted by delta.
class token_input : public llm_graph_input_i {
public:
    token_input(const dqrelo_context & dctx, ggml_tensor * tokens) : dctx(dctx), tokens(tokens) {}

    void set_input(const llama_ubatch * ubatch) override {
        std::vector<float>                         data(4 * ubatch->n_tokens);
        std::unordered_map<llama_seq_id, uint32_t> n_of; // tokens of each sequence
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            n_of[ubatch->seq_id[i][0]]++;
        }
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            bool       agree = true;
            const auto b     = dctx.binding_of(ubatch->seq_id[i], ubatch->n_seq_id[i], agree);
            const bool many  = b.delta_index >= 0 && n_of[ubatch->seq_id[i][0]] >= DQRELO_FOLD_ROWS;
            data[2 * i + 0]  = (float) b.delta_index + (many ? DQRELO_MANY : 0.0f);
            data[2 * i + 1]  = b.request_scale;
        }
        ggml_dqrelo_sort_tokens(data.data(), ubatch->n_tokens);
        ggml_backend_tensor_set(tokens, data.data(), 0, ggml_nbytes(tokens));
    }

    bool can_reuse(const llm_graph_params & params) override { return tokens->ne[1] == (int64_t) params.ubatch.n_tokens; }

private:
    const dqrelo_context & dctx;
    ggml_tensor *          tokens; // F32 [2, n_tokens, 2]
};

ggml_tensor * make_tokens(const llm_graph_params & params, ggml_context * ctx) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens, 2);
    ggml_set_name(t, "dqrelo_tokens");
    ggml_set_input(t);
    return t;
}

} // namespace

traced_graph::traced_graph(const llm_graph_params & params) :
    params(params), gf(params.res->get_gf()), ctx(params.res->get_ctx()), tokens(make_tokens(params, ctx)), row_map(params, ctx, tokens) {
    for (const auto & input : params.res->inputs) {
        if (const auto * inp = dynamic_cast<const llm_graph_input_out_ids *>(input.get())) {
            out_ids = inp->out_ids;
        }
    }
}

std::vector<ggml_tensor *> traced_graph::nodes() const {
    return { ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf) };
}

row_tokens traced_graph::first_token() const {
    row_tokens rows;
    rows.tokens = tokens;
    return rows;
}

bool traced_graph::is_composed(const ggml_tensor * weight) {
    const auto known = how.find(weight);
    return (known != how.end() ? known->second : how[weight] = placement_of(weight).how) == method::composed;
}

bool traced_graph::is_numbered(const row_tokens & rows) const {
    const auto is_selection = [this](const ggml_tensor * t) {
        return t && t->src[0] && t->src[0]->view_src == tokens && t->src[1] == out_ids;
    };
    return rows.tokens == tokens || is_selection(rows.tokens);
}

composed_layout traced_graph::layout_of(const weight_read & read) const {
    composed_layout layout;
    layout.one_delta = read.merged_copy || !read.own_ubatch.empty();
    if (!layout.one_delta) {
        const row_tokens rows = row_map.of(read.node);
        layout.kind           = rows.tokens == tokens ? ROWS_TOKENS : ROWS_OUTPUTS;
        std::copy_n(rows.stride, 4, layout.stride);
    }
    return layout;
}

void traced_graph::add_token_input() {
    params.res->add_input(std::make_unique<token_input>(*params.dqrelo, tokens));
}

} // namespace dqrelo
