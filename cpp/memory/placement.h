// placement.h: where the delta of a weight has to lie, and what computes it there.
#pragma once

#include "ggml-backend.h"

#include <string>

struct ggml_tensor;

namespace dqrelo {

enum class method {
    mapped,   // the operator on the CPU, which reads the mapped file
    fused,    // the operator of a device, which reads a copy in the device's memory
    composed, // ordinary ggml ops of a device that has no operator
};

struct placement {
    method                     how  = method::mapped;
    ggml_backend_buffer_type_t buft = nullptr; // of the tables, and of the copy
    std::string                problem;        // why there is none, or empty
};

// By the memory that `weight` lies in; a tensor without a buffer, as in a model that was loaded without its data, counts as the CPU's. With
// DQRELO_COMPOSED=1 in the environment everything is composed, on the CPU too: for tests, and to find out whether the operator or something
// else is at fault.
placement placement_of(const ggml_tensor * weight);

// Whether DQRELO_COMPOSED is 1.
bool all_composed();

// The device whose memory it is; ggml names none for the CPU's.
ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft);

} // namespace dqrelo
