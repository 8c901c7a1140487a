// sha256.h: SHA-256 of data that may be long, of several pieces side by side.
#pragma once

#include "file/mapped-file.h"
#include "file/sha256-kernels.h"

#include <cstddef>
#include <string>
#include <vector>

namespace dqrelo {

struct sha256_input {
    const void * data;
    size_t       n_bytes;
};

// Returns the number of threads that pay for the inputs on this machine: 1 for a few MiB.
size_t sha256_n_threads(const std::vector<sha256_input> & inputs);

// The SHA-256 of each input as 64 lower-case hex digits, in the order of the inputs; `hex` has its length afterwards. Returns false where
// `is_aborted` ended it, which is asked on this thread only, every few MiB and while it waits for others.
bool sha256_hex(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads, const is_aborted_fn & is_aborted,
                std::vector<std::string> & hex);

} // namespace dqrelo
