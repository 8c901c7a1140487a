// composed-rows.h: which rows of a ubatch belong to which delta, as ordinary ggml ops need it: as row numbers and multipliers in input
// tensors. Their sizes are part of the graph, so a graph is reused only for ubatches with the same deltas and as many rows of each.
#pragma once

#include "llama-graph.h"

#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

struct dqrelo_context;

namespace dqrelo {

// Rows are numbered over all tokens of the ubatch, or over those with outputs.
enum row_kind { ROWS_TOKENS = 0, ROWS_OUTPUTS = 1 };

struct delta_rows {
    int32_t                             delta_index = -1;
    uint64_t                            generation  = 0;    // Changes when the index gets another delta.
    bool                                unit        = true; // True where every row has request scale 1.
    std::array<std::vector<int32_t>, 2> rows;               // Lists rows by row_kind, ascending.
    std::array<std::vector<float>, 2>   request_scales;     // Has the request scales of those rows.
};

struct row_plan {
    std::vector<delta_rows> deltas; // Lists the deltas that have rows, in ascending order.
    std::array<int64_t, 2>  n_rows = { 0, 0 };
    // True where a row may be one of several deltas, which are added up in it.
    bool has_blends = false;

    static row_plan of(const dqrelo_context & dctx, const llama_ubatch & ubatch, int64_t n_outputs);

    // Returns whether both lead to the same graph.
    bool same_graph(const row_plan & other) const;
};

// The plan's input tensors, written before each run.
class composed_inputs : public llm_graph_input_i {
public:
    composed_inputs(const dqrelo_context & dctx, row_plan plan) : dctx(dctx), plan(std::move(plan)) {}

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    // Returns, of delta i of the plan, the numbers of its rows, their request scales, and for each row of the ubatch the request scale, or
    // 0 where the row is not the delta's.
    ggml_tensor * rows(ggml_context * ctx, size_t i, row_kind kind);           // I32 [n]
    ggml_tensor * request_scales(ggml_context * ctx, size_t i, row_kind kind); // F32 [1, n]
    ggml_tensor * multipliers(ggml_context * ctx, size_t i, row_kind kind);    // F32 [n_rows]

private:
    enum content { CONTENT_ROWS, CONTENT_REQUEST_SCALES, CONTENT_MULTIPLIERS };
    struct key {
        size_t   i;
        row_kind kind;
        content  what;
        bool     operator<(const key & o) const { return std::tie(i, kind, what) < std::tie(o.i, o.kind, o.what); }
    };

    ggml_tensor * input(ggml_context * ctx, key k, ggml_type type, int64_t ne0, int64_t ne1);

    const dqrelo_context &       dctx;
    row_plan                     plan;
    std::map<key, ggml_tensor *> tensors;
};

} // namespace dqrelo
