// memory.h: device memory. It is host memory that only kernels of its device, and copies, may touch: anything else that reads or writes it is a segmentation fault.
// Under a sanitizer it is on the heap instead, where an access behind an allocation is seen.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CUEMU_HEAP_DEVICE 1
#else
#define CUEMU_HEAP_DEVICE 0
#endif

namespace cuemu {

constexpr int MAX_DEVICES = 16;
constexpr int ALL_DEVICES = -1;

constexpr size_t MAX_DYNAMIC_BYTES = 96 * 1024;       // shared memory that a kernel can have after cudaFuncSetAttribute
constexpr size_t DEVICE_BYTES      = (size_t) 4 << 30; // what a device says that it has

inline int n_devices() {
    const char * n = getenv("CUEMU_DEVICES");
    return n ? atoi(n) : 1;
}

inline int & current_device() {
    static thread_local int device = 0;
    return device;
}

struct device_memory {
    struct allocation {
        size_t n_bytes;
        int    device;
    };
    std::recursive_mutex         mutex; // kernels and copies come one after another, whatever threads they come from
    std::map<char *, allocation> all;
    size_t                       n_used[MAX_DEVICES] = {};

    void * take(size_t n_bytes) {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        const int                                   device = current_device();
#if CUEMU_HEAP_DEVICE
        char * p = (char *) aligned_alloc(256, (n_bytes + 255) / 256 * 256);
#else
        char * p = (char *) mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        p        = p == MAP_FAILED ? nullptr : p;
#endif
        if (p) {
            memset(p, 0xA5, n_bytes); // garbage, as on a GPU
            all[p] = { n_bytes, device };
            n_used[device] += n_bytes;
            protect(p, n_bytes, PROT_NONE);
        }
        return p;
    }

    void give_back(void * p) {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        const auto                                  it = all.find((char *) p);
        if (it == all.end()) {
            fprintf(stderr, "cuemu: cudaFree of %p, which is no device memory\n", p);
            abort();
        }
        n_used[it->second.device] -= it->second.n_bytes;
#if CUEMU_HEAP_DEVICE
        free(p);
#else
        munmap(p, it->second.n_bytes);
#endif
        all.erase(it);
    }

    void open(int device, int protection) {
        for (const auto & a : all) {
            if (device == ALL_DEVICES || a.second.device == device) {
                protect(a.first, a.second.n_bytes, protection);
            }
        }
    }

private:
    static void protect([[maybe_unused]] char * p, [[maybe_unused]] size_t n_bytes, [[maybe_unused]] int protection) {
#if !CUEMU_HEAP_DEVICE
        if (mprotect(p, n_bytes, protection) != 0) {
            perror("cuemu: mprotect");
            abort();
        }
#endif
    }
};

inline device_memory & the_memory() {
    static device_memory & m = *new device_memory; // for good: programs free what they have as they end
    return m;
}

// While one lives, the memory of a device can be read and written.
struct opened {
    const int                              device;
    std::unique_lock<std::recursive_mutex> lock;

    explicit opened(int device_) :
        device(device_),
        lock(the_memory().mutex) { the_memory().open(device, PROT_READ | PROT_WRITE); }
    ~opened() { the_memory().open(device, PROT_NONE); }
    opened(const opened &)             = delete;
    opened & operator=(const opened &) = delete;
};

} // namespace cuemu
