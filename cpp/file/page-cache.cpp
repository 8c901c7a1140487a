#include "file/page-cache.h"

#ifdef __linux__
#include <cerrno>

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

namespace dqrelo {

#ifdef __linux__

bool read_would_wait(int fd, size_t offset_bytes) {
    char        byte = 0;
    const iovec to   = { &byte, 1 };
    if (preadv2(fd, &to, 1, (off_t) offset_bytes, RWF_NOWAIT) >= 0 || errno != EAGAIN) {
        return false;
    }
    // Linux reads the page nevertheless, and the next one who asks would find it there. What is being read cannot be let go of yet.
    if (pread(fd, &byte, 1, (off_t) offset_bytes) == 1) {
        const size_t page = (size_t) sysconf(_SC_PAGESIZE);
        posix_fadvise(fd, (off_t) (offset_bytes / page * page), (off_t) page, POSIX_FADV_DONTNEED);
    }
    return true;
}

bool set_past_page_cache(int fd, bool is_past) {
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, is_past ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

page_cache_filler::page_cache_filler(int fd) : fd_(fd), null_fd_(open("/dev/null", O_WRONLY | O_CLOEXEC)) {
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); // In larger requests.
}

page_cache_filler::~page_cache_filler() {
    if (null_fd_ >= 0) {
        close(null_fd_);
    }
}

bool page_cache_filler::fill(size_t offset_bytes, size_t n_bytes) const {
    const off_t end = (off_t) (offset_bytes + n_bytes);
    for (off_t at = (off_t) offset_bytes; at < end;) {
        if (sendfile(null_fd_, fd_, &at, (size_t) (end - at)) <= 0) {
            return false;
        }
    }
    return !read_would_wait(fd_, offset_bytes + n_bytes - 1);
}

#else

bool read_would_wait(int, size_t) {
    return false;
}

bool set_past_page_cache(int, bool) {
    return false;
}

page_cache_filler::page_cache_filler(int fd) : fd_(fd), null_fd_(-1) {}

page_cache_filler::~page_cache_filler() = default;

bool page_cache_filler::fill(size_t, size_t) const {
    return false;
}

#endif

} // namespace dqrelo
