// composed-check.h: whether a device has the ordinary ops that a delta would be made of on it.
#pragma once

#include "graph/composed.h"

#include <cstdint>
#include <string>
#include <vector>

struct dqrelo_context;
struct dqrelo_delta;

namespace dqrelo {

// Shapes of a read of a weight by a graph, which outlive the graph.
struct read_shape {
    const ggml_tensor * weight = nullptr;
    dqrelo_form         form   = DQRELO_FORM_MATMUL;
    bool                swap   = false;
    int64_t             node[4];        // ne of the node
    int64_t             x[4]   = { 0 }; // of the activation, 0 where there is none
    int64_t             ids[2] = { 0 }; // of the ids, 0 where there are none
    composed_layout     layout;

    static read_shape of(const weight_read & read, const composed_layout & layout);
    bool              operator==(const read_shape & other) const;
};

// Builds what the graphs of the context would add for the delta, and asks the devices about each op. Returns one line without the file's
// name, or "" if all are there; `n_nodes` is the number of nodes that a slot with the delta may add to a graph.
std::string composed_problem(const dqrelo_context & dctx, const dqrelo_delta & delta, uint32_t & n_nodes);

} // namespace dqrelo
