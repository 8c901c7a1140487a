// page-cache.h: what the system keeps of a file in memory. On Linux; elsewhere all of every file counts as kept.
#pragma once

#include <cstddef>

namespace dqrelo {

// Returns whether the byte at offset_bytes can be read without a wait.
bool is_in_page_cache(int fd, size_t offset_bytes);

// Brings pieces of a file in, the first ones first, and copies none of their bytes. Advice (POSIX_FADV_WILLNEED) would do it, too, but in
// small pages, which whoever reads the file then pays for.
class page_cache_filler {
public:
    // The descriptor must outlive the object.
    explicit page_cache_filler(int fd);
    ~page_cache_filler();
    page_cache_filler(const page_cache_filler &)             = delete;
    page_cache_filler & operator=(const page_cache_filler &) = delete;

    // Waits until the bytes are there. Returns false where that is not to be had.
    bool fill(size_t offset_bytes, size_t n_bytes) const;

private:
    const int fd_;
    const int null_fd_; // of the null device
};

} // namespace dqrelo
