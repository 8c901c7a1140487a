// composed-pack.h: a copy of some weights of a delta as ordinary ggml tensors in the memory of a device that has no operator.
#pragma once

#include "dqrelo-op.h"

#include "ggml-cpp.h"

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace dqrelo {

class delta_file;

// D_hat of one weight of n_mat matrices. Only `dense`, or only the others.
struct composed_weight {
    struct plane {
        ggml_tensor * sign  = nullptr; // +-1; Q1_0, Q4_0 or F16 [n_in, n_out, n_mat]
        ggml_tensor * scale = nullptr; // F32 [1 or n_out, n_mat], or NULL where `alpha` is the scale
        float         alpha = 1.0f;
    };

    std::vector<plane> planes;
    ggml_tensor *      cscale = nullptr; // F32 [n_in, n_mat]
    ggml_tensor *      u      = nullptr; // [rank, n_out, n_mat]
    ggml_tensor *      v      = nullptr; // [n_in, rank, n_mat]
    ggml_tensor *      a      = nullptr; // sign factors, decoded: [rank, n_out, n_mat] of another rank, a multiple of 32
    ggml_tensor *      b      = nullptr; // [n_in, rank, n_mat], multiplied with the column scales too
    ggml_tensor *      dense  = nullptr; // [n_in, n_out, n_mat]: F32, or of a sparse weight F16, BF16 or F32
    int64_t            n_mat  = 1;
};

class composed_pack {
public:
    // Copies `weights`, indices in the file. Returns nullptr with one line in `err`, which starts with the file's path, if the device's
    // memory does not hold them, or the type that it multiplies some number in.
    static std::unique_ptr<composed_pack> load(const delta_file & file, ggml_backend_buffer_type_t buft,
                                               const std::vector<size_t> & weights, std::string & err);

    // Returns what `load` takes of the device's memory. No data of the file is read.
    static size_t bytes_needed(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights);

    // Weight i of the file, or nullptr if it was not copied.
    const composed_weight * find(size_t i) const;

    size_t n_bytes() const { return ggml_backend_buffer_get_size(buffer.get()); }

private:
    composed_pack() = default;

    void make_tensors(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights);

    ggml_context_ptr                            ctx;
    ggml_backend_buffer_ptr                     buffer;
    std::unordered_map<size_t, composed_weight> packs; // Keyed by index in the file.
};

} // namespace dqrelo
