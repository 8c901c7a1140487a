// sha256-kernels.cpp: the portable kernel, and the choice among all.
#include "file/sha256-kernels.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <algorithm>
#include <utility>

namespace dqrelo {

void sha256_update_portable(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    for (size_t l = 0; l < n_lanes; ++l) {
        sha256_t hash = {};
        std::copy_n(lanes[l].state, 8, hash.state);
        sha256_update(&hash, lanes[l].data, n_blocks * SHA256_BLOCK_BYTES);
        std::copy_n(hash.state, 8, lanes[l].state);
    }
}

static std::vector<sha256_kernel> kernels_of_this_cpu() {
    const sha256_kernel * first  = sha256_kernel_x86();
    const sha256_kernel * second = sha256_kernel_avx512();
    if (sha256_prefers_avx512()) {
        std::swap(first, second);
    }
    std::vector<sha256_kernel> kernels;
    for (const sha256_kernel * kernel : { first, second, sha256_kernel_avx2(), sha256_kernel_armv8() }) {
        if (kernel != nullptr) {
            kernels.push_back(*kernel);
        }
    }
    kernels.push_back({ "portable", 1, sha256_update_portable });
    return kernels;
}

const std::vector<sha256_kernel> & sha256_kernels() {
    static const std::vector<sha256_kernel> kernels = kernels_of_this_cpu();
    return kernels;
}

} // namespace dqrelo
