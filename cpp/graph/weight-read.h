// weight-read.h: how a node of a graph reads a weight that some delta changes.
#pragma once

#include "dqrelo-op.h"

#include <string>

namespace dqrelo {

struct weight_read {
    ggml_tensor * node   = nullptr; // The delta is added to this node's result.
    ggml_tensor * weight = nullptr;
    int           k      = 0;       // The weight is this one of the node's sources.
    ggml_tensor * x      = nullptr; // Holds the activation.
    ggml_tensor * ids    = nullptr; // Holds the rows or matrices that are selected.
    dqrelo_form   form   = DQRELO_FORM_MATMUL;

    bool merged_copy = false; // The node reads a copy of the weight merged with its delta, in place of the weight.
    // Says why that is only right in a ubatch whose tokens all have one delta and request scale, or is empty.
    std::string own_ubatch;
    // Says why it cannot be done, or is empty.
    std::string problem;
};

} // namespace dqrelo
