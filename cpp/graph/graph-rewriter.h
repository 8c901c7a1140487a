// graph-rewriter.h: puts deltas onto the nodes of a graph that read changed weights.
#pragma once

#include "context/graph-key.h"
#include "graph/composed.h"
#include "graph/weight-read.h"

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

struct dqrelo_context;

namespace dqrelo {

class traced_graph;

class graph_rewriter {
public:
    graph_rewriter(const dqrelo_context & dctx, traced_graph & graph);
    graph_rewriter(const graph_rewriter &)             = delete;
    graph_rewriter & operator=(const graph_rewriter &) = delete;

    // Puts the deltas that change the weights onto the nodes of these reads, which are all those of one node. Returns false with one line
    // in `problem`, which says which tensor and why, if that cannot be done.
    bool put(std::vector<weight_read> reads, std::string & problem);

    // Returns whether some active delta changes the weight.
    bool is_changed(const weight_read & read);

    // Ends the rewriting; `nodes` are those that the graph had, and others for its end.
    void finish(const std::vector<ggml_tensor *> & nodes);

private:
    void                    start_composed();
    const composed_weight * find_composed(int32_t delta_index, const ggml_tensor * weight) const;
    bool                    is_changed_by_ops(const weight_read & read);
    ggml_tensor *           table_of(const ggml_tensor * weight);
    bool                    has_room(const weight_read & read, std::string & problem) const;
    bool                    carries(const weight_read & read, std::string & problem) const;
    bool                    can_fold(const weight_read & read) const;
    ggml_tensor *           base_node(ggml_tensor * node);
    void                    attach(const weight_read & read, ggml_tensor * table);
    ggml_tensor *           merged_copy(ggml_tensor * weight, ggml_tensor * table);
    void                    read_merged_copy(const weight_read & read, ggml_tensor * table);
    void                    add_nodes(const std::vector<ggml_tensor *> & nodes);

    const dqrelo_context & dctx;
    traced_graph &         graph;
    // The ubatch has tokens of one binding only, and a delta of that needs it.
    const bool own_ubatch;

    bool any_table = false; // True if some node is the operator.

    row_plan                                               plan;
    std::unique_ptr<composed_graph>                        composed; // NULL where no delta is composed of ordinary ops.
    std::unordered_map<const ggml_tensor *, ggml_tensor *> merged;   // Maps a weight to its copy with the delta.
};

} // namespace dqrelo
