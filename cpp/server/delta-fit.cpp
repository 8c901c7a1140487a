#include "delta-fit.h"

#include "delta-entry.h"
#include "delta-folder.h"

#include <algorithm>

// Bytes of the files of all deltas, or what --delta-memory allows.
static size_t bytes_of_all(const dqrelo_options & options) {
    size_t n_bytes = 0;
    for (const auto & source : options.deltas) {
        n_bytes += server_delta_stamp::of(source.path).n_bytes;
    }
    if (!options.deltas_dir.empty()) {
        for (const auto & source : server_delta_folder_list(options.deltas_dir)) {
            n_bytes += server_delta_stamp::of(source.path).n_bytes;
        }
    }
    return options.n_bytes_max > 0 ? std::min(n_bytes, options.n_bytes_max) : n_bytes;
}

// Whether the model lies in the host's memory alone: no device was named, and none is found.
static bool is_on_host(const common_params & params) {
    if (!params.devices.empty()) {
        return params.devices[0] == nullptr;  // the list ends with NULL: --device none
    }
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            return false;
        }
    }
    return true;
}

void server_delta_make_fit(common_params & params) {
    const auto & options = params.dqrelo;
    if (!params.fit_params || (options.deltas.empty() && options.deltas_dir.empty()) || !is_on_host(params)) {
        return;
    }
    try {
        const size_t n_bytes = bytes_of_all(options);
        SRV_INF("--fit leaves %.1f MiB for deltas\n", n_bytes / 1048576.0);
        params.fit_params_target.at(0) += n_bytes;
    } catch (const std::invalid_argument &) {
        // --deltas-dir cannot be read: said where it is registered
    }
}
