// upload.h: memory of a device for what a delta needs there, and copies into it from pageable memory, beside what the device computes.
#pragma once

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dqrelo {

// Memory for all tensors of `ctx`, as weights: the scheduler keeps an op on the backend of those. nullptr with one line in `err`, which
// starts with `path`, if it is short.
ggml_backend_buffer_ptr allocate_weights(ggml_context * ctx, ggml_backend_buffer_type_t buft, const std::string & path, std::string & err);

// Copies through a few pinned buffers on a stream of its own: while one is on its way to the device, the next is filled. A device without
// pinned memory, streams or events gets plain copies.
class uploader {
public:
    explicit uploader(ggml_backend_dev_t dev);
    ~uploader();
    uploader(const uploader &)             = delete;
    uploader & operator=(const uploader &) = delete;

    // Copies n_bytes from `data` into `dst` at `offset`. On return `data` is no longer needed, but the copy may not have ended.
    void copy(ggml_tensor * dst, size_t offset, const void * data, size_t n_bytes);

    // Waits for all copies.
    void finish();

private:
    struct staging {
        ggml_backend_buffer_ptr buffer;
        ggml_backend_event_ptr  event; // Marks the end of the last copy out of the buffer.
    };

    bool start(ggml_backend_dev_t dev);

    ggml_backend_ptr     stream; // Stands before `ring`, so that events end first.
    std::vector<staging> ring;   // If it is empty, copies are plain.
    size_t               next = 0;
};

} // namespace dqrelo
