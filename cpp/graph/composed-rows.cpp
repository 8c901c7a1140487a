#include "graph/composed-rows.h"

#include "context/context-state.h"

#include "ggml-backend.h"
#include "llama-batch.h"

#include <algorithm>

namespace dqrelo {

row_plan row_plan::of(const dqrelo_context & dctx, const llama_ubatch & ubatch, int64_t n_outputs) {
    const bool              all_outputs = n_outputs == (int64_t) ubatch.n_tokens || !ubatch.output;
    std::vector<delta_rows> of_delta(dctx.active.size());
    row_plan                plan;
    plan.n_rows = { (int64_t) ubatch.n_tokens, n_outputs };

    int32_t n_seen = 0; // Counts outputs, which are numbered as llama.cpp's out_ids are.
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        bool          agree  = true;
        const auto &  b      = dctx.binding_of(ubatch.seq_id[i], ubatch.n_seq_id[i], agree);
        const bool    output = (all_outputs || ubatch.output[i]) && n_seen < n_outputs;
        const int32_t number = n_seen;
        n_seen += output;
        for (const dqrelo_context::part & p : b) {
            delta_rows & s = of_delta[p.delta_index];
            s.unit         = s.unit && p.request_scale == 1.0f;
            s.rows[ROWS_TOKENS].push_back((int32_t) i);
            s.request_scales[ROWS_TOKENS].push_back(p.request_scale);
            if (output) {
                s.rows[ROWS_OUTPUTS].push_back(number);
                s.request_scales[ROWS_OUTPUTS].push_back(p.request_scale);
            }
        }
        plan.has_blends = plan.has_blends || b.size() > 1;
    }
    for (size_t k = 0; k < of_delta.size(); k++) {
        if (!of_delta[k].rows[ROWS_TOKENS].empty()) {
            of_delta[k].delta_index = (int32_t) k;
            of_delta[k].generation  = dctx.active[k].generation;
            plan.deltas.push_back(std::move(of_delta[k]));
        }
    }
    return plan;
}

bool row_plan::same_graph(const row_plan & other) const {
    const auto same = [](const delta_rows & a, const delta_rows & b) {
        return a.delta_index == b.delta_index && a.generation == b.generation && a.unit == b.unit && a.rows[0].size() == b.rows[0].size() &&
               a.rows[1].size() == b.rows[1].size();
    };
    return n_rows == other.n_rows && has_blends == other.has_blends &&
           std::equal(deltas.begin(), deltas.end(), other.deltas.begin(), other.deltas.end(), same);
}

ggml_tensor * composed_inputs::input(ggml_context * ctx, key k, ggml_type type, int64_t ne0, int64_t ne1) {
    ggml_tensor *& t = tensors[k];
    if (!t) {
        t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
        ggml_format_name(t, "dqrelo_%s_%d_%zu",
                         k.what == CONTENT_ROWS             ? "rows"
                         : k.what == CONTENT_REQUEST_SCALES ? "request_scales"
                                                            : "multipliers",
                         (int) k.kind, k.i);
        ggml_set_input(t);
    }
    return t;
}

ggml_tensor * composed_inputs::rows(ggml_context * ctx, size_t i, row_kind kind) {
    return input(ctx, { i, kind, CONTENT_ROWS }, GGML_TYPE_I32, (int64_t) plan.deltas[i].rows[kind].size(), 1);
}

ggml_tensor * composed_inputs::request_scales(ggml_context * ctx, size_t i, row_kind kind) {
    return input(ctx, { i, kind, CONTENT_REQUEST_SCALES }, GGML_TYPE_F32, 1, (int64_t) plan.deltas[i].rows[kind].size());
}

ggml_tensor * composed_inputs::multipliers(ggml_context * ctx, size_t i, row_kind kind) {
    return input(ctx, { i, kind, CONTENT_MULTIPLIERS }, GGML_TYPE_F32, plan.n_rows[kind], 1);
}

void composed_inputs::set_input(const llama_ubatch * ubatch) {
    plan = row_plan::of(dctx, *ubatch, plan.n_rows[ROWS_OUTPUTS]);
    for (const auto & [k, t] : tensors) {
        if (!t->buffer) {
            continue; // No node of the graph reads it.
        }
        const std::vector<int32_t> & rows   = plan.deltas[k.i].rows[k.kind];
        const std::vector<float> &   scales = plan.deltas[k.i].request_scales[k.kind];
        if (k.what == CONTENT_MULTIPLIERS) {
            std::vector<float> multipliers((size_t) plan.n_rows[k.kind], 0.0f);
            for (size_t r = 0; r < rows.size(); r++) {
                multipliers[(size_t) rows[r]] = scales[r];
            }
            ggml_backend_tensor_set(t, multipliers.data(), 0, ggml_nbytes(t));
        } else {
            const void * data = k.what == CONTENT_ROWS ? (const void *) rows.data() : scales.data();
            ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t));
        }
    }
}

bool composed_inputs::can_reuse(const llm_graph_params & params) {
    return plan.same_graph(row_plan::of(dctx, params.ubatch, params.n_outputs));
}

} // namespace dqrelo
