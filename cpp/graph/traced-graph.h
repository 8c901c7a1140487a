// traced-graph.h: a finished graph of which the pass knows what each row is for.
#pragma once

#include "graph/composed.h"
#include "graph/row-tokens.h"
#include "graph/weight-read.h"
#include "memory/placement.h"

#include <unordered_map>
#include <vector>

struct dqrelo_context;
struct ggml_cgraph;
struct llm_graph_params;

namespace dqrelo {

class traced_graph {
public:
    explicit traced_graph(const llm_graph_params & params);

    std::vector<ggml_tensor *> nodes() const;

    // Must be called for every node in the graph's order, before the node is asked about.
    void visit(ggml_tensor * node) { row_map.visit(node); }

    row_tokens tokens_of(const ggml_tensor * node) const { return row_map.of(node); }

    // In a ubatch of one delta every row belongs to the first token's.
    row_tokens first_token() const;

    // Returns whether the weight's delta is made of ordinary ops.
    bool is_composed(const ggml_tensor * weight);

    // Ordinary ops need rows that are numbered over all tokens, or over those with outputs.
    bool is_numbered(const row_tokens & rows) const;

    // For a read whose rows are numbered, or that is for one delta.
    composed_layout layout_of(const weight_read & read) const;

    // Makes the tokens' deltas an input, which is written before each run. Needed once some node is the operator.
    void add_token_input();

    const llm_graph_params & params;
    ggml_cgraph * const      gf;
    ggml_context * const     ctx;

private:
    // F32 [2, n_tokens, 2]; it holds {delta index or -1, request scale} of each token, and the same sorted.
    ggml_tensor * tokens;
    row_token_map row_map;
    ggml_tensor * out_ids = nullptr; // I32 [n_outputs]; it selects the tokens with outputs.

    std::unordered_map<const ggml_tensor *, method> how; // Says how each weight's delta is computed.
};

} // namespace dqrelo
