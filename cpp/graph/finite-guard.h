// finite-guard.h: keeps NaN and infinity of one sequence away from the others of its batch, and tells whose they were.
//
// Sequences share the cells of a KV cache, and attention reads all of them: those of others count with weight 0, and 0 * NaN is NaN. So
// what a graph with deltas writes into shared cells is clamped to finite numbers first. Because that hides where they came from, the graph
// also sums up what each token is about to write in the last layer: NaN and infinity stay in a token's residual stream from the layer that
// made them to the last one, so the sum is finite for a sound token only.
//
// Routers of experts are clamped too: kernels that take the largest of a row's logits may answer a row of NaN with an expert that there
// is not.
#pragma once

#include "graph/traced-graph.h"

#include "ggml.h"
#include "llama-graph.h"

namespace dqrelo {

class finite_guard {
public:
    explicit finite_guard(const traced_graph & graph) : graph(graph) {}

    // Must be called for every node of the graph in its order, once the deltas are on it. False if there is no room for more nodes.
    bool visit(ggml_tensor * node);

    // Returns a node for the end of the graph that holds the sums, or null where nothing is shared. The graph's inputs then have a
    // finite_check.
    ggml_tensor * finish();

    // Nodes that it adds to a graph for each write into shared cells, at most.
    static constexpr int MAX_NODES = 4;

private:
    bool          guard(ggml_tensor * node, int k);
    bool          guard_result(ggml_tensor * node);
    bool          has_room() const;
    bool          is_computed(const ggml_tensor * t) const;
    ggml_tensor * rows_of_tokens(ggml_tensor * t) const;

    const traced_graph & graph;
    // The last write was made from this tensor, which has as many numbers for each token.
    ggml_tensor * last = nullptr;
};

// The sums of a graph: F32 [1, n_tokens].
class finite_check : public llm_graph_input_i {
public:
    explicit finite_check(ggml_tensor * sums) : sums(sums) {}
    void set_input(const llama_ubatch * /*ubatch*/) override {}
    bool can_reuse(const llm_graph_params & params) override { return sums->ne[1] == (int64_t) params.ubatch.n_tokens; }

    ggml_tensor * const sums;
};

} // namespace dqrelo
