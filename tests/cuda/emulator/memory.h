// memory.h: device memory. It is host memory that only kernels of its device, and copies, may touch: anything else that reads or writes it
// ends the program with a line. Under a sanitizer it is on the heap instead, where an access behind an allocation is seen.
//
// Environment: CUEMU_HIDE = a part of paths: while a kernel runs, files of these names that the host has mapped cannot be read. What it
// gets must lie in device memory.
#pragma once

#include <csignal>
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

constexpr size_t MAX_DYNAMIC_BYTES = 96 * 1024;        // bytes of shared memory that a kernel can have after cudaFuncSetAttribute
constexpr size_t DEVICE_BYTES      = (size_t) 4 << 30; // bytes that a device says that it has

inline int n_devices() {
    const char * n = getenv("CUEMU_DEVICES");
    return n ? atoi(n) : 1;
}

inline int & current_device() {
    static thread_local int device = 0;
    return device;
}

// Protects mapped files whose paths hold CUEMU_HIDE.
inline void protect_files(int protection) {
    const char * hidden = getenv("CUEMU_HIDE");
    if (!hidden) {
        return;
    }
    FILE *        maps = fopen("/proc/self/maps", "r");
    char          line[4096];
    unsigned long first, last;
    while (fgets(line, sizeof(line), maps)) {
        if (strstr(line, hidden) && sscanf(line, "%lx-%lx", &first, &last) == 2) {
            mprotect((void *) first, last - first, protection);
        }
    }
    fclose(maps);
}

struct device_memory {
    struct allocation {
        size_t n_bytes;
        int    device;
    };
    std::mutex                   mutex; // Kernels and copies come one after another, whatever threads they come from.
    std::map<char *, allocation> all;
    size_t                       n_used[MAX_DEVICES] = {};

    void * take(size_t n_bytes) {
        const std::lock_guard<std::mutex> lock(mutex);
        const int                         device = current_device();
        void *                            p      = nullptr;
#if CUEMU_HEAP_DEVICE
        if (posix_memalign(&p, 256, n_bytes) != 0) {
            return nullptr;
        }
#else
        p = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            return nullptr;
        }
#endif
        memset(p, 0xA5, n_bytes); // New memory holds garbage, as on a GPU.
        all[(char *) p] = { n_bytes, device };
        n_used[device] += n_bytes;
        protect((char *) p, n_bytes, PROT_NONE);
        return p;
    }

    void give_back(void * p) {
        const std::lock_guard<std::mutex> lock(mutex);
        const auto                        it = all.find((char *) p);
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

    // All memory of a device, or of all of them.
    void set_access(int device, int protection) {
        for (const auto & a : all) {
            if (device == ALL_DEVICES || a.second.device == device) {
                protect(a.first, a.second.n_bytes, protection);
            }
        }
    }

    // Returns the device whose memory holds the address, or -1.
    int device_of(const void * address) const {
        for (const auto & a : all) {
            if (address >= a.first && address < a.first + a.second.n_bytes) {
                return a.second.device;
            }
        }
        return -1;
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

inline device_memory & the_memory();

// Says whose memory it was, and lets the program end as it would have.
inline void report_access(int signal, siginfo_t * info, void *) {
    const int device = the_memory().device_of(info->si_addr);
    if (device >= 0) {
        fprintf(stderr, "cuemu: %p is memory of device %d, and neither a copy nor a kernel of that device touches it\n", info->si_addr,
                device);
    } else if (getenv("CUEMU_HIDE")) {
        fprintf(stderr, "cuemu: %p is no memory of a device, perhaps of a hidden file (%s)\n", info->si_addr, getenv("CUEMU_HIDE"));
    }
    ::signal(signal, SIG_DFL);
}

inline device_memory & the_memory() {
    static device_memory * memory = [] {
#if !CUEMU_HEAP_DEVICE
        struct sigaction action = {};
        action.sa_sigaction     = report_access;
        action.sa_flags         = SA_SIGINFO;
        sigaction(SIGSEGV, &action, nullptr);
#endif
        return new device_memory; // It is never freed, because programs free what they have as they end.
    }();
    return *memory;
}

// While one lives, copies can touch the memory of all devices.
struct copying {
    const std::lock_guard<std::mutex> lock;

    copying() : lock(the_memory().mutex) { the_memory().set_access(ALL_DEVICES, PROT_READ | PROT_WRITE); }
    ~copying() { the_memory().set_access(ALL_DEVICES, PROT_NONE); }
};

// While one lives, a kernel of the current device can touch that device's memory.
struct computing {
    const std::lock_guard<std::mutex> lock;
    const int                         device;

    computing() : lock(the_memory().mutex), device(current_device()) {
        the_memory().set_access(device, PROT_READ | PROT_WRITE);
        protect_files(PROT_NONE);
    }
    ~computing() {
        protect_files(PROT_READ);
        the_memory().set_access(device, PROT_NONE);
    }
};

} // namespace cuemu
