// placement.h: where the delta of a weight has to lie, and what computes it there.
#pragma once

#include "ggml-backend.h"

#include <string>

struct ggml_tensor;

namespace dqrelo {

enum class method {
    mapped,   // The operator on the CPU reads the mapped file.
    fused,    // The operator of a device reads a copy in the device's memory.
    composed, // A device that has no operator runs ordinary ggml ops.
};

struct placement {
    method                     how  = method::mapped;
    ggml_backend_buffer_type_t buft = nullptr; // Holds the tables, and the copy.
    std::string                problem;        // Says why there is none, or is empty.
};

// By the memory that `weight` lies in; a tensor without a buffer, as in a model that was loaded without its data, counts as the CPU's. With
// DQRELO_COMPOSED=1 in the environment everything is composed, on the CPU too: for tests, and to find out whether the operator or something
// else is at fault.
placement placement_of(const ggml_tensor * weight);

// Returns whether DQRELO_COMPOSED is 1.
bool all_composed();

// Returns the device whose memory it is; ggml names none for the CPU's.
ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft);

} // namespace dqrelo
