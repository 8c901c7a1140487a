// isa.cpp: what the CPU has. It is compiled without the flags of an instruction set, because it runs before any of them is known to work.

#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DQRELO_CPU_AVXVNNI
#include <cpuid.h>
#endif
#if defined(DQRELO_CPU_AARCH64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(DQRELO_CPU_AARCH64) && defined(_WIN32)
#include <windows.h>
#endif

static bool has_avx512vnni() {
#ifdef DQRELO_CPU_X86
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

static bool has_avx2() {
#ifdef DQRELO_CPU_X86
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

static bool has_avxvnni() {
#ifdef DQRELO_CPU_AVXVNNI
    // Clang 14 does not know its name.
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
#else
    return false;
#endif
}

static bool has_dotprod() {
#if !defined(DQRELO_CPU_AARCH64)
    return false;
#elif defined(__linux__)
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

const char * dqrelo_isa_name(enum dqrelo_isa isa) {
    switch (isa) {
        case DQRELO_ISA_AVX512VNNI: return "avx512vnni";
        case DQRELO_ISA_AVXVNNI: return "avxvnni";
        case DQRELO_ISA_AVX2: return "avx2";
        case DQRELO_ISA_NEON: return "neon";
        default: return "scalar";
    }
}

bool dqrelo_isa_is_supported(enum dqrelo_isa isa) {
    switch (isa) {
        case DQRELO_ISA_AVX512VNNI: return has_avx512vnni();
        case DQRELO_ISA_AVXVNNI: return has_avxvnni();
        case DQRELO_ISA_AVX2: return has_avx2();
        case DQRELO_ISA_NEON: return has_dotprod();
        default: return true;
    }
}

static enum dqrelo_isa choose() {
    enum dqrelo_isa list[DQRELO_ISA_COUNT];
    int             n = 0;
    for (int i = 0; i < DQRELO_ISA_COUNT; i++) {
        if (dqrelo_isa_is_supported((enum dqrelo_isa) i)) {
            list[n++] = (enum dqrelo_isa) i;
        }
    }
    const char * name = getenv("DQRELO_ISA");
    if (name == nullptr || *name == '\0') {
        return list[0];
    }
    for (int i = 0; i < n; i++) {
        if (strcmp(dqrelo_isa_name(list[i]), name) == 0) {
            return list[i];
        }
    }
    fprintf(stderr, "dqrelo: DQRELO_ISA=%s is not one that this build and CPU run, using %s; they run:", name, dqrelo_isa_name(list[0]));
    for (int i = 0; i < n; i++) {
        fprintf(stderr, " %s", dqrelo_isa_name(list[i]));
    }
    fprintf(stderr, "\n");
    return list[0];
}

enum dqrelo_isa dqrelo_isa_chosen(void) {
    static const enum dqrelo_isa isa = choose();
    return isa;
}
