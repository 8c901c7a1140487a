// dispatch.cpp: chooses the table of kernels, once, from what the CPU has.

#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(DQRELO_CPU_AARCH64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(DQRELO_CPU_AARCH64) && defined(_WIN32)
#include <windows.h>
#endif

static constexpr int MAX_KERNELS = 8;

struct candidate {
    const struct dqrelo_kernels * kernels;
    bool (*supported)();
};

static bool always() {
    return true;
}

#ifdef DQRELO_CPU_X86
static bool has_avx512vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
static bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef DQRELO_CPU_AARCH64
static bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; // The bit is HWCAP_ASIMDDP of <asm/hwcap.h>.
#elif defined(__APPLE__)
    return true; // Every Apple silicon that runs macOS has them.
#elif defined(_WIN32)
    // The number is PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which is missing from older SDKs.
    return IsProcessorFeaturePresent(43) != 0;
#else
    return false;
#endif
}
#endif

// The tables that are built in, best first.
static const candidate candidates[] = {
#ifdef DQRELO_CPU_X86
    { &dqrelo_kernels_avx512vnni, has_avx512vnni },
    { &dqrelo_kernels_avx2, has_avx2 },
#endif
#ifdef DQRELO_CPU_AARCH64
    { &dqrelo_kernels_neon, has_dotprod },
#endif
    { &dqrelo_kernels_scalar, always },
};

int dqrelo_cpu_kernels_all(const struct dqrelo_kernels ** list, int n_max) {
    int n = 0;
    for (const candidate & c : candidates) {
        if (n < n_max && c.supported()) {
            list[n++] = c.kernels;
        }
    }
    return n;
}

static const struct dqrelo_kernels * choose() {
    const struct dqrelo_kernels * list[MAX_KERNELS];
    const int                     n    = dqrelo_cpu_kernels_all(list, MAX_KERNELS);
    const char *                  name = getenv("DQRELO_ISA");
    if (name == nullptr || *name == '\0') {
        return list[0];
    }
    for (int i = 0; i < n; i++) {
        if (strcmp(list[i]->name, name) == 0) {
            return list[i];
        }
    }
    fprintf(stderr, "dqrelo: DQRELO_ISA=%s is not one that this build and CPU run, using %s; they run:", name, list[0]->name);
    for (int i = 0; i < n; i++) {
        fprintf(stderr, " %s", list[i]->name);
    }
    fprintf(stderr, "\n");
    return list[0];
}

const struct dqrelo_kernels * dqrelo_cpu_kernels(void) {
    static const struct dqrelo_kernels * const kernels = choose();
    return kernels;
}
