// weight-read.h: how a node of a graph reads a weight that some delta changes.
#pragma once

#include "dqrelo-op.h"

#include <string>

namespace dqrelo {

struct weight_read {
    ggml_tensor * node   = nullptr; // whose result the delta is added to
    ggml_tensor * weight = nullptr;
    int           k      = 0;       // which of the node's sources the weight is
    ggml_tensor * x      = nullptr; // activation
    ggml_tensor * ids    = nullptr; // rows or matrices that are selected
    dqrelo_form   form   = DQRELO_FORM_MATMUL;

    bool        merged_copy = false; // the node reads a copy of the weight merged with its delta, in place of the weight
    std::string own_ubatch;          // why that is only right in a ubatch whose tokens all have one delta and request scale, or empty
    std::string problem;             // why it cannot be done, or empty
};

} // namespace dqrelo
