// device-pack.h: a copy of some weights of a delta in the memory of a device, for the device's operator.
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

class device_pack {
public:
    // Copies `weights`, indices in the file, as they are there. Returns nullptr with one line in `err`, which starts with the file's path,
    // if the device's memory does not hold them.
    static std::unique_ptr<device_pack> load(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights,
                                             std::string & err);

    // Returns what `load` takes of the device's memory.
    static size_t bytes_needed(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights);

    // Entry of weight i of the file, which is one of those copied, with addresses of the device.
    dqrelo_entry entry(size_t i) const;

    size_t n_bytes() const { return ggml_backend_buffer_get_size(buffer.get()); }

private:
    explicit device_pack(const delta_file & file) : file(file) {}

    const delta_file &                        file;
    ggml_context_ptr                          ctx;
    ggml_backend_buffer_ptr                   buffer;
    std::unordered_map<size_t, ggml_tensor *> packs; // I8 [n_bytes of the weight], by index in the file
};

} // namespace dqrelo
