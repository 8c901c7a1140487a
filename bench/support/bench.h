// bench.h: timing and memory for the benchmarks. Each benchmark prints its command, its CPU and the best of many runs: other load only adds
// time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <vector>

namespace bench {

// Allocates whole cache lines, as weights begin in files: a vector that is loaded from two lines takes the time of two loads.
template <typename T>
struct line_allocator {
    using value_type = T;

    line_allocator() = default;
    template <typename U>
    line_allocator(const line_allocator<U> & /* other */) {}

    T *  allocate(size_t n) { return (T *) ::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T * p, size_t /* n */) { ::operator delete(p, std::align_val_t(64)); }

    template <typename U>
    bool operator==(const line_allocator<U> & /* other */) const {
        return true;
    }
    template <typename U>
    bool operator!=(const line_allocator<U> & /* other */) const {
        return false;
    }
};

// The bytes of a weight, or of a part of it.
using weight_bytes = std::vector<uint8_t, line_allocator<uint8_t>>;

// The clock `thread` is this thread's own CPU time, which other load does not stretch. It serves for one thread only.
enum class clock { wall, thread };

inline double now(clock which) {
    timespec t;
    clock_gettime(which == clock::wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

// Seconds of the fastest of many calls, over at least `seconds` and at least 5 calls, after one to warm up.
template <typename F>
double best(clock which, double seconds, F && call) {
    call();
    double       fastest = 1e30;
    const double begin   = now(which);
    for (int i = 0; i < 5 || now(which) - begin < seconds; i++) {
        const double t0 = now(which);
        call();
        fastest = std::min(fastest, now(which) - t0);
    }
    return fastest;
}

// Calls run(0) .. run(n-1) in turn, round after round, for at least `seconds` and 5 rounds after one to warm up; returns the median seconds
// of each.
template <typename F>
std::vector<double> medians_in_turn(size_t n, double seconds, F && run) {
    std::vector<std::vector<double>> samples(n);
    double                           begin = 0.0;
    for (int round = 0; round < 6 || now(clock::wall) - begin < seconds; round++) {
        for (size_t i = 0; i < n; i++) {
            const double t0 = now(clock::wall);
            run(i);
            if (round > 0) {
                samples[i].push_back(now(clock::wall) - t0);
            }
        }
        begin = round == 0 ? now(clock::wall) : begin;
    }
    std::vector<double> medians;
    for (auto & s : samples) {
        std::nth_element(s.begin(), s.begin() + (long) (s.size() / 2), s.end());
        medians.push_back(s[s.size() / 2]);
    }
    return medians;
}

inline void print_machine(int argc, char ** argv) {
    printf("command:");
    for (int i = 0; i < argc; i++) {
        printf(" %s", i == 0 && strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[i]);
    }
    char   line[256];
    char   name[256] = "unknown CPU";
    FILE * f         = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "model name : %255[^\n]", name) == 1) {
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    printf("\ncpu: %s\ncommit: ", name);
    f = popen("git -C '" DQRELO_SOURCE_DIR "' describe --always --exclude='*' --dirty=+ 2>/dev/null", "r");
    printf("%s", f && fgets(line, sizeof(line), f) ? line : "unknown\n");
    if (f) {
        pclose(f);
    }
}

// Returns the sum of the bytes in 64-bit pieces: what reading memory costs. n_bytes is a multiple of 64, `bytes` one of 8. The sums are
// added to in place: a copy of a line takes twice as long as memory does.
inline uint64_t read_all(const uint8_t * bytes, size_t n_bytes) {
    const uint64_t * words  = (const uint64_t *) bytes;
    uint64_t         sum[8] = {};
    for (size_t i = 0; i < n_bytes / 8; i += 8) {
        for (int k = 0; k < 8; k++) {
            sum[k] += words[i + k];
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

inline weight_bytes random_bytes(size_t n_bytes, std::mt19937 & rng) {
    weight_bytes out(n_bytes);
    for (size_t i = 0; i < n_bytes; i += 4) {
        const uint32_t r = (uint32_t) rng();
        memcpy(out.data() + i, &r, std::min<size_t>(4, n_bytes - i));
    }
    return out;
}

} // namespace bench
