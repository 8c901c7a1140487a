// copy-memory.cpp: POSIX. On Windows a copy is a map (mapped-file-win32.cpp).
#include "file/copy-memory.h"

#ifndef _WIN32

#include <mutex>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace dqrelo {

// Deltas of one base and ratio differ by some thousandths. Addresses cost nothing, so there are more of them than a file needs.
static constexpr size_t SPARE_PART = 64;

static size_t whole_pages(size_t n_bytes) {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    return (n_bytes + page - 1) / page * page;
}

namespace {

// The memory that is kept.
class spare_memory {
public:
    // Returns it if n_bytes fit and are most of it.
    copy_memory take(size_t n_bytes) {
        const std::lock_guard<std::mutex> lock(mutex);
        const bool fits = memory.data != nullptr && n_bytes <= memory.n_reserved && memory.n_reserved - n_bytes <= n_bytes / SPARE_PART * 2;
        return fits ? std::exchange(memory, {}) : copy_memory{};
    }

    // Returns what is not kept.
    copy_memory put(const copy_memory & left) {
        const std::lock_guard<std::mutex> lock(mutex);
        return is_kept ? std::exchange(memory, left) : left;
    }

    copy_memory keep(bool keep) {
        const std::lock_guard<std::mutex> lock(mutex);
        is_kept = keep;
        return std::exchange(memory, {});
    }

private:
    std::mutex  mutex; // Guards what follows.
    bool        is_kept = false;
    copy_memory memory;
};

} // namespace

static spare_memory spare;

static void unmap(const copy_memory & memory) {
    if (memory.data != nullptr) {
        munmap(memory.data, memory.n_reserved);
    }
}

// Makes memory of another file that of n_bytes. Returns false where the system refuses.
static bool use_again(copy_memory & memory, size_t n_bytes) {
    const size_t used = whole_pages(n_bytes);
    if (whole_pages(memory.n_bytes) > used) { // What is behind the file takes no memory.
        madvise(memory.data + used, memory.n_reserved - used, MADV_DONTNEED);
    }
    memory.n_bytes  = n_bytes;
    memory.is_fresh = false;
    return mprotect(memory.data, memory.n_reserved, PROT_READ | PROT_WRITE) == 0;
}

copy_memory take_copy_memory(size_t n_bytes) {
    copy_memory memory = spare.take(n_bytes);
    if (memory.data != nullptr && use_again(memory, n_bytes)) {
        return memory;
    }
    unmap(memory);
    const size_t n_reserved = whole_pages(n_bytes + n_bytes / SPARE_PART);
    void * const data       = mmap(nullptr, n_reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return {};
    }
#ifdef MADV_HUGEPAGE
    madvise(data, n_bytes, MADV_HUGEPAGE); // Huge pages fault once in 2 MiB, so a copy takes half of the time or less.
#endif
    return { (uint8_t *) data, n_bytes, n_reserved, true };
}

void leave_copy_memory(const copy_memory & memory) {
    unmap(spare.put(memory));
}

void keep_copy_memory(bool keep) {
    unmap(spare.keep(keep));
}

} // namespace dqrelo

#else

namespace dqrelo {

void keep_copy_memory(bool) {}

} // namespace dqrelo

#endif
