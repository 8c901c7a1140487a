#include "delta-fit.h"

#include "delta-entry.h"
#include "delta-folder.h"

#include <algorithm>

// Returns the bytes of the files of all deltas, or what --delta-memory allows.
static size_t bytes_of_all(const dqrelo_options & options) {
    size_t n_bytes = 0;
    for (const auto & source : options.deltas) {
        n_bytes += server_delta_stamp::of(source.path).n_bytes;
    }
    if (!options.deltas_dir.empty()) {
        for (const auto & [name, stamp] : server_delta_folder(options.deltas_dir).look({}).added) {
            n_bytes += stamp.n_bytes;
        }
    }
    return options.n_bytes_max > 0 ? std::min(n_bytes, options.n_bytes_max) : n_bytes;
}

// Devices that layers may go to, as llama.cpp counts them where it makes things fit: those that were named, or all GPUs, or the integrated
// ones.
static size_t n_devices(const common_params & params) {
    if (!params.devices.empty()) {
        return (size_t) std::count_if(params.devices.begin(), params.devices.end(), [](ggml_backend_dev_t dev) { return dev != nullptr; });
    }
    size_t n_gpu  = 0;
    size_t n_igpu = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        n_gpu += type == GGML_BACKEND_DEVICE_TYPE_GPU ? 1 : 0;
        n_igpu += type == GGML_BACKEND_DEVICE_TYPE_IGPU ? 1 : 0;
    }
    return n_gpu > 0 ? n_gpu : n_igpu;
}

void server_delta_make_fit(common_params & params) {
    const auto & options = params.dqrelo;
    if (!params.fit_params || (options.deltas.empty() && options.deltas_dir.empty())) {
        return;
    }
    try {
        const size_t n_bytes = bytes_of_all(options);
        // A delta lies where the layers do, which are only placed then: an equal share for each device.
        const size_t n_parts = std::clamp<size_t>(n_devices(params), 1, params.fit_params_target.size());
        SRV_INF("--fit leaves %.1f MiB for deltas%s\n", n_bytes / 1048576.0, n_parts > 1 ? ", in equal parts on the devices" : "");
        for (size_t i = 0; i < n_parts; i++) {
            params.fit_params_target.at(i) += n_bytes / n_parts;
        }
    } catch (const std::invalid_argument &) {
        // The folder of --deltas-dir cannot be read, which is said where its files are registered.
    }
}
