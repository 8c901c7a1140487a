#include "memory/upload.h"

#include "file/message.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

namespace dqrelo {

// Large enough for the full speed of a bus, small enough to take no memory worth counting.
static constexpr size_t STAGING_BYTES = 4 * 1024 * 1024;
static constexpr size_t N_STAGING     = 4;

ggml_backend_buffer_ptr allocate_weights(ggml_context * ctx, ggml_backend_buffer_type_t buft, const std::string & path, std::string & err) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft));
    if (buffer) {
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    } else {
        err =
            message("%s: %.1f MiB do not fit into the free memory of %s. Unload other deltas, or offload fewer layers (-ngl)", path.c_str(),
                    (double) ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft) / (1024 * 1024), ggml_backend_buft_name(buft));
    }
    return buffer;
}

uploader::uploader(ggml_backend_dev_t dev) {
    if (!start(dev)) {
        ring.clear();
        stream.reset();
    }
}

uploader::~uploader() {
    finish();
}

bool uploader::start(ggml_backend_dev_t dev) {
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    const ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(dev);
    if (!props.caps.async || !props.caps.host_buffer || !props.caps.events || !pinned) {
        return false;
    }
    for (size_t i = 0; i < N_STAGING; i++) {
        staging s;
        s.buffer.reset(ggml_backend_buft_alloc_buffer(pinned, STAGING_BYTES));
        s.event.reset(ggml_backend_event_new(dev));
        if (!s.buffer || !s.event) {
            return false;
        }
        ring.push_back(std::move(s));
    }
    stream.reset(ggml_backend_dev_init(dev, nullptr));
    return stream != nullptr;
}

void uploader::copy(ggml_tensor * dst, size_t offset, const void * data, size_t n_bytes) {
    if (!stream) {
        ggml_backend_tensor_set(dst, data, offset, n_bytes);
        return;
    }
    for (size_t at = 0; at < n_bytes; at += STAGING_BYTES, next++) {
        const size_t n    = std::min(STAGING_BYTES, n_bytes - at);
        staging &    s    = ring[next % N_STAGING];
        void *       host = ggml_backend_buffer_get_base(s.buffer.get());
        if (next >= N_STAGING) {
            ggml_backend_event_synchronize(s.event.get());
        }
        memcpy(host, (const uint8_t *) data + at, n);
        ggml_backend_tensor_set_async(stream.get(), dst, host, offset + at, n);
        ggml_backend_event_record(s.event.get(), stream.get());
    }
}

void uploader::finish() {
    if (stream) {
        ggml_backend_synchronize(stream.get());
    }
}

} // namespace dqrelo
