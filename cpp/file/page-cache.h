// page-cache.h: what the system keeps of a file in memory. On Linux; elsewhere no read counts as one that waits, and none goes past it.
#pragma once

#include <cstddef>

namespace dqrelo {

// Returns whether it is known that a read of the byte at offset_bytes would wait for the disk. Some file systems do not tell, those that
// keep nothing among them. The page cache is as before.
bool read_would_wait(int fd, size_t offset_bytes);

// Where reads past the page cache begin and end in a file, and in memory: at multiples of this many bytes.
constexpr size_t PAST_CACHE_ALIGNMENT = 4096;

// From here on reads of the descriptor go past the page cache, from the disk into the reader's memory without a copy, or through it again.
// Returns false where that is not to be had. Then, and where a read past it fails, reads through it may do.
bool set_past_page_cache(int fd, bool is_past);

// Brings pieces of a file in, the first ones first, and copies none of their bytes. Advice (POSIX_FADV_WILLNEED) would do it, too, but in
// small pages, which whoever reads the file then pays for.
class page_cache_filler {
public:
    // The descriptor must outlive the object.
    explicit page_cache_filler(int fd);
    ~page_cache_filler();
    page_cache_filler(const page_cache_filler &)             = delete;
    page_cache_filler & operator=(const page_cache_filler &) = delete;

    // Waits until the bytes, one at least, are there. Returns false where that is not to be had, or they did not stay.
    bool fill(size_t offset_bytes, size_t n_bytes) const;

private:
    const int fd_;
    const int null_fd_; // of the null device
};

} // namespace dqrelo
