#include "delta-entry.h"

#ifdef _WIN32
#include <filesystem>
#else
#include <sys/stat.h>
#endif

#ifdef _WIN32
server_delta_stamp server_delta_stamp::of(const std::string & path) {
    server_delta_stamp stamp;
    std::error_code    err;
    const auto         n_bytes = std::filesystem::file_size(path, err);
    stamp.path                 = path;
    stamp.n_bytes              = err ? 0 : n_bytes;
    stamp.changed_ns           = std::filesystem::last_write_time(path, err).time_since_epoch().count();
    return stamp;
}
#else
static int64_t ns_of(const struct timespec & time) {
    return (int64_t) time.tv_sec * 1000000000 + time.tv_nsec;
}

server_delta_stamp server_delta_stamp::of(const std::string & path) {
    server_delta_stamp stamp;
    struct stat        st;
    stamp.path = path;
    if (stat(path.c_str(), &st) != 0) {
        return stamp;
    }
    stamp.n_bytes = (uintmax_t) st.st_size;
    stamp.device  = (uint64_t) st.st_dev;
    stamp.inode   = (uint64_t) st.st_ino;
#ifdef __APPLE__
    stamp.changed_ns = ns_of(st.st_mtimespec);
    stamp.touched_ns = ns_of(st.st_ctimespec);
#else
    stamp.changed_ns = ns_of(st.st_mtim);
    stamp.touched_ns = ns_of(st.st_ctim);
#endif
    return stamp;
}
#endif

bool server_delta_stamp::operator==(const server_delta_stamp & other) const {
    return path == other.path && n_bytes == other.n_bytes && device == other.device && inode == other.inode &&
           changed_ns == other.changed_ns && touched_ns == other.touched_ns;
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
