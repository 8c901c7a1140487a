// read-finder.h: finds the nodes of a graph that read weights of the model, and in which form.
#pragma once

#include "graph/weight-read.h"

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

struct llama_model;

namespace dqrelo {

class traced_graph;

class read_finder {
public:
    read_finder(const llama_model & model, traced_graph & graph);

    // Reads that a node completes; the graph has visited it. Must be called for every node in the graph's order: a matmul whose result is
    // multiplied by a `*.scale` tensor is a read of that multiplication.
    std::vector<weight_read> reads_of(ggml_tensor * node);

    // Matmuls whose multiplication has not come.
    std::vector<weight_read> unfinished() const;

private:
    bool                is_weight(const ggml_tensor * t) const;
    std::string         scale_tensor_of(const ggml_tensor * weight) const;
    const ggml_tensor * source_weight(const ggml_tensor * t) const;
    weight_read         decided(weight_read read);

    traced_graph &                                       graph;
    std::unordered_set<std::string>                      names;          // Has the names of the model's tensors.
    std::unordered_map<const ggml_tensor *, weight_read> awaiting_scale; // Keeps matmuls whose multiplication by *.scale is still to come.
};

} // namespace dqrelo
