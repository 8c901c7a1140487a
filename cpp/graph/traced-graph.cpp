#include "graph/traced-graph.h"

#include "context/context-state.h"
#include "context/graph-key.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-graph.h"

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>

namespace dqrelo {

namespace {

// Writes, before each run, which delta and request scale is part k of each token of the ubatch, and the tokens sorted by delta.
class token_input : public llm_graph_input_i {
public:
    token_input(const dqrelo_context & dctx, std::vector<ggml_tensor *> tokens) : dctx(dctx), tokens(std::move(tokens)) {}

    void set_input(const llama_ubatch * ubatch) override {
        std::unordered_map<llama_seq_id, uint32_t> n_of; // tokens of each sequence
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            n_of[ubatch->seq_id[i][0]]++;
        }
        for (size_t k = 0; k < tokens.size(); k++) {
            std::vector<float> data(4 * ubatch->n_tokens);
            for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
                bool         agree = true;
                const auto & b     = dctx.binding_of(ubatch->seq_id[i], ubatch->n_seq_id[i], agree);
                const bool   has   = k < b.size() && b[k].delta_index >= 0;
                data[2 * i + 0]    = has ? (float) b[k].delta_index + ggml_dqrelo_length(n_of[ubatch->seq_id[i][0]]) : -1.0f;
                data[2 * i + 1]    = has ? b[k].request_scale : 1.0f;
            }
            ggml_dqrelo_sort_tokens(data.data(), ubatch->n_tokens);
            if (tokens[k]->buffer) { // Else no node reads it.
                ggml_backend_tensor_set(tokens[k], data.data(), 0, ggml_nbytes(tokens[k]));
            }
        }
    }

    bool can_reuse(const llm_graph_params & params) override { return tokens[0]->ne[1] == (int64_t) params.ubatch.n_tokens; }

private:
    const dqrelo_context &     dctx;
    std::vector<ggml_tensor *> tokens; // F32 [2, n_tokens, 2] for each part
};

std::vector<ggml_tensor *> make_tokens(const llm_graph_params & params, ggml_context * ctx) {
    std::vector<ggml_tensor *> tokens;
    for (int32_t k = 0; k < graph_key::decode(params.dqrelo_key).n_parts; k++) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, params.ubatch.n_tokens, 2);
        ggml_format_name(t, "dqrelo_tokens_%d", k);
        ggml_set_input(t);
        tokens.push_back(t);
    }
    return tokens;
}

} // namespace

traced_graph::traced_graph(const llm_graph_params & params) :
    params(params),
    gf(params.res->get_gf()),
    ctx(params.res->get_ctx()),
    tokens(make_tokens(params, ctx)),
    row_map(params, ctx, tokens[0]) {
    for (const auto & input : params.res->inputs) {
        if (const auto * inp = dynamic_cast<const llm_graph_input_out_ids *>(input.get())) {
            out_ids = inp->out_ids;
        }
    }
}

std::vector<ggml_tensor *> traced_graph::nodes() const {
    return { ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf) };
}

row_tokens traced_graph::tokens_of(const ggml_tensor * node, int32_t part) {
    row_tokens rows = row_map.of(node);
    rows.tokens     = tokens_of_part(rows.tokens, part);
    return rows;
}

// Selects of a part's tokens the same ones as `of_first` has of the first part's.
ggml_tensor * traced_graph::tokens_of_part(ggml_tensor * of_first, int32_t part) {
    if (part == 0) {
        return of_first;
    }
    if (of_first == tokens[0]) {
        return tokens[part];
    }
    ggml_tensor *& t = selected[{ of_first, part }];
    if (!t) {
        t = row_token_map::select(ctx, tokens_of_part(of_first->src[0]->view_src, part), of_first->src[1]);
    }
    return t;
}

row_tokens traced_graph::first_token(int32_t part) const {
    row_tokens rows;
    rows.tokens = tokens[part];
    return rows;
}

bool traced_graph::is_composed(const ggml_tensor * weight) {
    const auto known = how.find(weight);
    return (known != how.end() ? known->second : how[weight] = placement_of(weight).how) == method::composed;
}

bool traced_graph::is_numbered(const row_tokens & rows) const {
    const auto is_selection = [this](const ggml_tensor * t) {
        return t && t->src[0] && t->src[0]->view_src == tokens[0] && t->src[1] == out_ids;
    };
    return rows.tokens == tokens[0] || is_selection(rows.tokens);
}

composed_layout traced_graph::layout_of(const weight_read & read) const {
    composed_layout layout;
    layout.one_delta = read.merged_copy || !read.own_ubatch.empty();
    if (!layout.one_delta) {
        const row_tokens rows = row_map.of(read.node);
        layout.kind           = rows.tokens == tokens[0] ? ROWS_TOKENS : ROWS_OUTPUTS;
        std::copy_n(rows.stride, 4, layout.stride);
    }
    return layout;
}

void traced_graph::add_token_input() {
    params.res->add_input(std::make_unique<token_input>(*params.dqrelo, tokens));
}

} // namespace dqrelo
