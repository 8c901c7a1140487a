// sanitizers.h: what ASan and TSan must be told about fibers and shared memory; nothing in a build without them.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char * file, int line);
void AnnotateIgnoreReadsEnd(const char * file, int line);
void AnnotateIgnoreWritesBegin(const char * file, int line);
void AnnotateIgnoreWritesEnd(const char * file, int line);
}
#endif

namespace cuemu {

// While one lives, TSan does not look at this fiber's plain reads and writes: they are the emulator's own bookkeeping.
struct unwatched {
#if defined(__SANITIZE_THREAD__)
    unwatched() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~unwatched() { end(); }
    static void end() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    unwatched() {}
    ~unwatched() {}
    static void end() {}
#endif
};

// Everything before release(p) happens before everything after a later acquire(p).
inline void release([[maybe_unused]] void * p) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(p);
#endif
}

inline void acquire([[maybe_unused]] void * p) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(p);
#endif
}

inline void poison([[maybe_unused]] const void * p, [[maybe_unused]] size_t n_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(p, n_bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void * p, [[maybe_unused]] size_t n_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(p, n_bytes);
#endif
}

} // namespace cuemu
