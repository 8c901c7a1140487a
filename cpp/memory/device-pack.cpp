#include "memory/device-pack.h"

#include "file/delta-file.h"
#include "memory/upload.h"

#include "ggml-backend.h"

namespace dqrelo {

std::unique_ptr<device_pack> device_pack::load(const delta_file & file, ggml_backend_buffer_type_t buft,
                                               const std::vector<size_t> & weights, std::string & err) {
    std::unique_ptr<device_pack> pack(new device_pack(file));
    pack->ctx.reset(ggml_init({ weights.size() * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    for (size_t i : weights) {
        const weight_info & w = file.weights()[i];
        pack->packs[i]        = ggml_new_tensor_1d(pack->ctx.get(), GGML_TYPE_I8, (int64_t) w.n_bytes);
        ggml_set_name(pack->packs[i], w.name.c_str());
    }
    pack->buffer = allocate_weights(pack->ctx.get(), buft, file.path(), err);
    if (!pack->buffer) {
        return nullptr;
    }

    uploader up(ggml_backend_buft_get_device(buft));
    for (size_t i : weights) {
        up.copy(pack->packs[i], 0, file.data(i), file.weights()[i].n_bytes);
    }
    up.finish();
    return pack;
}

size_t device_pack::bytes_needed(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights) {
    const size_t alignment = ggml_backend_buft_get_alignment(buft);
    size_t       n_bytes   = 0;
    for (size_t i : weights) {
        n_bytes += GGML_PAD(file.weights()[i].n_bytes, alignment);
    }
    return n_bytes;
}

dqrelo_entry device_pack::entry(size_t i) const {
    return file.entry_at(i, packs.at(i)->data);
}

} // namespace dqrelo
