// prefetch.cpp: where this CPU's requests of memory go. It is compiled without the flags of an instruction set.

#include "prefetch.h"

#include <stdlib.h>
#include <string.h>

#ifdef DQRELO_CPU_X86
#include <cpuid.h>
#endif

// Zen 5 and what follows it: the family of its CPUs is 26.
static bool is_zen5() {
#ifdef DQRELO_CPU_X86
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 0xf) + (a >> 20 & 0xff) >= 26;
#else
    return false;
#endif
}

static bool asks_cache_1() {
    const char * level = getenv("DQRELO_PREFETCH");
    return level && *level ? strcmp(level, "1") == 0 : is_zen5();
}

const bool dqrelo_asks_cache_1 = asks_cache_1();
