// weight-usage.h: how the graphs of a context read its model's weights.
#pragma once

#include "graph/composed.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dqrelo {

// Shapes of a read of a weight by a graph, which outlive the graph.
struct read_shape {
    const ggml_tensor * weight      = nullptr;
    dqrelo_form         form        = DQRELO_FORM_MATMUL;
    bool                merged_copy = false;
    int64_t             node[4];        // ne of the node
    int64_t             x[4]   = { 0 }; // ne of the activation, 0 where there is none
    int64_t             ids[2] = { 0 }; // ne of the ids, 0 where there are none
    composed_layout     layout;

    static read_shape of(const weight_read & read, const composed_layout & layout);
    bool              operator==(const read_shape & other) const;
};

struct weight_usage {
    // Says in one line why a delta of the weight is not supported, or is empty.
    std::string problem;
    // Says why that is only right in a ubatch whose tokens all have one delta and request scale, or is empty.
    std::string own_ubatch;

    // Devices without the operator need to know these.
    std::vector<read_shape> composed;    // Has each shape once.
    uint32_t                n_reads = 0; // Counts the reads of the graph that reads the weight most often.
};

struct graph_usage {
    std::map<std::string, weight_usage> weights; // Has the weights that some graph reads, by name.

    // Returns nullptr if no graph reads it.
    const weight_usage * find(const std::string & weight) const {
        const auto it = weights.find(weight);
        return it == weights.end() ? nullptr : &it->second;
    }
};

} // namespace dqrelo
