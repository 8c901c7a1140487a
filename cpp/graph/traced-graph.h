// traced-graph.h: a finished graph of which the pass knows what each row is for.
#pragma once

#include "graph/composed.h"
#include "graph/row-tokens.h"
#include "graph/weight-read.h"
#include "memory/placement.h"

#include <map>
#include <unordered_map>
#include <utility>
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

    // No row has more deltas than this. Where rows have blends, the tokens have a tensor for each part: tensor k says part k of each token.
    int32_t n_parts() const { return (int32_t) tokens.size(); }

    row_tokens tokens_of(const ggml_tensor * node) const { return row_map.of(node); }
    row_tokens tokens_of(const ggml_tensor * node, int32_t part);

    // In a ubatch of one binding every row belongs to the first token's.
    row_tokens first_token(int32_t part) const;

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
    ggml_tensor * tokens_of_part(ggml_tensor * of_first, int32_t part);

    // For each part F32 [2, n_tokens, 2]; it holds {delta index or -1, request scale} of each token, and the same sorted.
    std::vector<ggml_tensor *> tokens;
    row_token_map              row_map;
    // Maps tokens that were selected of those of the first part, and another part, to the same tokens of that part.
    std::map<std::pair<const ggml_tensor *, int32_t>, ggml_tensor *> selected;
    ggml_tensor * out_ids = nullptr; // I32 [n_outputs]; it selects the tokens with outputs.

    std::unordered_map<const ggml_tensor *, method> how; // Says how each weight's delta is computed.
};

} // namespace dqrelo
