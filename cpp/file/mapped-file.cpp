// mapped-file.cpp: POSIX. The Windows form is in mapped-file-win32.cpp; each file is empty on the other's platform.
#ifndef _WIN32

#include "file/mapped-file.h"

#include "file/ahead.h"
#include "file/copy-memory.h"
#include "file/message.h"
#include "file/page-cache.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dqrelo {

// Says what went wrong, for example "no such file or directory".
static std::string system_error(int number) {
    std::string text = strerror(number);
    text[0]          = (char) tolower((unsigned char) text[0]);
    return text;
}

static std::string identity_of(const struct stat & st) {
#ifdef __APPLE__
    const timespec written = st.st_mtimespec, changed = st.st_ctimespec;
#else
    const timespec written = st.st_mtim, changed = st.st_ctim;
#endif
    // Times of files move in steps of milliseconds, on some file systems of seconds: a second change within a step would not show.
    if (time(nullptr) - changed.tv_sec < 3) {
        return "";
    }
    const auto text = [](const timespec & t) { return std::to_string(t.tv_sec) + "." + std::to_string(t.tv_nsec); };
    return std::to_string(st.st_dev) + " " + std::to_string(st.st_ino) + " " + std::to_string(st.st_size) + " " + text(written) + " " +
           text(changed);
}

std::unique_ptr<mapped_file> mapped_file::open(const std::string & path, mode how, std::string & err) {
    // What is no regular file may block here for ever (a FIFO without a writer), which O_NONBLOCK prevents; it changes nothing for others.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        err = errno == ENXIO ? "is not a regular file" : system_error(errno); // a socket, or a device without a driver
        return nullptr;
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        err = "is not a regular file";
        close(fd);
        return nullptr;
    }
    if (st.st_size == 0) {
        err = "is empty";
        close(fd);
        return nullptr;
    }
    const copy_memory memory    = how == mode::copy ? take_copy_memory((size_t) st.st_size) : copy_memory{};
    void * const      data      = how == mode::copy ? memory.data : mmap(nullptr, (size_t) st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    const int         map_errno = errno;
    if (data == MAP_FAILED || data == nullptr) {
        err = (how == mode::map ? "cannot be mapped: " : "cannot be read into memory: ") + system_error(map_errno);
        close(fd);
        return nullptr;
    }
    std::unique_ptr<mapped_file> file(new mapped_file());
    file->data_       = (const uint8_t *) data;
    file->n_bytes_    = (size_t) st.st_size;
    file->identity_   = identity_of(st);
    file->n_reserved_ = memory.n_reserved;
    file->is_fresh_   = memory.is_fresh;
    if (how == mode::map) {
        close(fd); // The mapping keeps the file.
    } else {
        file->fd_ = fd;
    }
    return file;
}

mapped_file::~mapped_file() {
    ahead_.clear(); // It ends before the memory does, and the descriptor.
    if (n_reserved_ > 0) {
        leave_copy_memory({ (uint8_t *) data_, n_bytes_, n_reserved_ });
    } else {
        munmap((void *) data_, n_bytes_);
    }
    if (fd_ >= 0) {
        close(fd_);
    }
}

// Past the page cache nothing reads ahead: a piece is all that the disk has to do, so it is more than the caller asked for. But whoever
// waits is asked, and sees a sign of life, between two pieces only, so they are small where the last one took long.
static constexpr size_t PAST_LEAST = (size_t) 1 << 20;
static constexpr size_t PAST_MOST  = (size_t) 8 << 20;
static constexpr auto   QUICK      = std::chrono::milliseconds(50);

bool mapped_file::fetch(size_t n_bytes, const is_aborted_fn & is_aborted, std::string & err) {
    // The pieces of a map are large enough for the disk, and a moment on a slow network.
    constexpr size_t piece = (size_t) 4 << 20;
    while (n_fetched_ < std::min(n_bytes, n_bytes_)) {
        if (is_aborted && is_aborted()) {
            err = "was not read to its end: nobody waits for it any more";
            return false;
        }
        const size_t n =
            is_past_page_cache() ? std::min(n_past_, n_bytes_ - n_fetched_) : std::min(piece, std::min(n_bytes, n_bytes_) - n_fetched_);
        const auto begun = std::chrono::steady_clock::now();
        if (!fetch_piece(n_fetched_, n, err)) {
            return false;
        }
        n_fetched_ += n;
        if (is_past_page_cache()) {
            n_past_ = std::chrono::steady_clock::now() - begun < QUICK ? std::min(2 * n_past_, PAST_MOST) : PAST_LEAST;
        }
        for (const std::shared_ptr<ahead_of_reader> & ahead : ahead_) {
            ahead->read(n_fetched_);
        }
    }
    if (fd_ >= 0 && n_fetched_ == n_bytes_) {
        ahead_.clear();
        struct stat st;
        if (fstat(fd_, &st) != 0 || identity_of(st) != identity_) {
            identity_.clear();
        }
        close(fd_);
        fd_ = -1;
        if (!is_changed_) {
            mprotect((void *) data_, n_bytes_, PROT_READ); // From here on a stray write faults, as in a map.
        }
    }
    return true;
}

// Makes pages, as if each had been written to without a change. Returns false where that is not to be had: they are made later.
static bool make_pages(uint8_t * data, size_t n_bytes) {
#ifdef MADV_POPULATE_WRITE // Linux 5.14
    return madvise(data, n_bytes, MADV_POPULATE_WRITE) == 0;
#else
    (void) data;
    return n_bytes == 0;
#endif
}

void mapped_file::expect_whole(const is_decoding_fn & is_decoding, bool is_first) {
    if (fd_ < 0) {
        return;
    }
    if (is_fresh_) {
        const auto make = [data = (uint8_t *) data_](size_t at, size_t n) { return make_pages(data + at, n); };
        ahead_.push_back(std::make_shared<ahead_of_reader>(0, n_bytes_, make, is_decoding));
    }
    const bool is_busy = is_decoding && is_decoding();
    if ((is_busy && !is_first) || !read_would_wait(fd_, n_bytes_ / 2)) {
        return;
    }
    // A disk waits while requests to it are made, and who has other work between reads makes them late. Where others decode, a load waits
    // for cores and for memory, not for the disk: it needs less of both if the page cache has no copy of its own.
    if (is_busy) {
        n_past_ = set_past_page_cache(fd_, true) ? PAST_LEAST : 0;
    } else {
        const auto fill = [filler = std::make_shared<page_cache_filler>(fd_)](size_t at, size_t n) { return filler->fill(at, n); };
        ahead_.push_back(std::make_shared<ahead_of_reader>(n_fetched_, n_bytes_, fill, is_decoding));
    }
}

void mapped_file::expect_random_access() const {
    madvise((void *) data_, n_bytes_, MADV_RANDOM);
}

// Reads a byte of every `step` bytes of [data, data + n_bytes).
static void touch(const uint8_t * data, size_t n_bytes, size_t step) {
    volatile uint8_t sink = 0;
    for (size_t at = 0; at < n_bytes; at += step) {
        sink = data[at];
    }
    (void) sink;
}

static void prefault(const uint8_t * data, size_t n_bytes) {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    // The advice starts reading in large requests. A touch waits for its page, and enters it into this process's page table: Linux enters
    // what it has of the 64 KiB around it, too. So the first pass takes one fault each 64 KiB, and the second one meets hardly any. Both
    // together take a third of the time of the second alone, which touches fresh pages between the faults (300 MB in the page cache: 14 ms
    // against 39 ms).
    madvise((void *) data, n_bytes, MADV_WILLNEED);
    touch(data, n_bytes, 16 * page);
    touch(data, n_bytes, page);
}

bool mapped_file::fetch_piece(size_t offset_bytes, size_t n_bytes, std::string & err) {
    if (fd_ < 0) {
        prefault(data_ + offset_bytes, n_bytes);
        return true;
    }
    for (size_t done = 0; done < n_bytes;) {
        size_t n_wanted = n_bytes - done;
        if (is_past_page_cache() && n_wanted > PAST_CACHE_ALIGNMENT) {
            n_wanted -= n_wanted % PAST_CACHE_ALIGNMENT;
        }
        const ssize_t n = pread(fd_, (void *) (data_ + offset_bytes + done), n_wanted, (off_t) (offset_bytes + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && is_past_page_cache()) { // The end of the file, or one that has to be read otherwise.
            n_past_ = 0;
            set_past_page_cache(fd_, false);
            continue;
        }
        if (n <= 0) {
            err = n < 0 ? "cannot be read: " + system_error(errno)
                        : message("ends at byte %zu, it had %zu when it was opened. Put a new file in place by renaming it",
                                  offset_bytes + done, n_bytes_);
            return false;
        }
        done += (size_t) n;
    }
    return true;
}

// A copy is writable until all of it was fetched.
bool mapped_file::begin_changes() {
    if (n_reserved_ == 0 || (n_fetched_ == n_bytes_ && mprotect((void *) data_, n_bytes_, PROT_READ | PROT_WRITE) != 0)) {
        return false;
    }
    is_changed_ = true;
    return true;
}

void mapped_file::end_changes() {
    is_changed_ = false;
    if (n_fetched_ == n_bytes_) {
        mprotect((void *) data_, n_bytes_, PROT_READ);
    }
}

void mapped_file::discard(size_t offset_bytes, size_t n_bytes) const {
    const size_t page  = (size_t) sysconf(_SC_PAGESIZE);
    const size_t begin = (offset_bytes + page - 1) / page * page;
    const size_t end   = (offset_bytes + n_bytes) / page * page;
    if (begin < end) {
        madvise((void *) (data_ + begin), end - begin, MADV_DONTNEED);
    }
}

} // namespace dqrelo

#endif
