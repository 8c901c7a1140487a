#include "delta-entry.h"

server_delta_stamp server_delta_stamp::of(const std::string & path) {
    server_delta_stamp stamp;
    std::error_code    err;
    const auto         n_bytes = std::filesystem::file_size(path, err);
    stamp.path                 = path;
    stamp.n_bytes              = err ? 0 : n_bytes;
    stamp.changed              = std::filesystem::last_write_time(path, err);
    return stamp;
}

void server_delta::free_handle() {
    if (handle != nullptr && !dqrelo_free(handle)) {
        SRV_ERR("delta '%s': still bound, not freed\n", name.c_str());
    }
    handle = nullptr;
}

const char * server_delta_entry::state() const {
    if (is_draining || (is_leaving && current)) {
        return "draining";
    }
    if (current) {
        return "loaded";
    }
    if (job) {
        return "loading";
    }
    return is_broken ? "failed" : "registered";
}
