// dispatch.cpp: chooses the table of kernels, once, from what the CPU has.

#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int dqrelo_cpu_kernels_all(const struct dqrelo_kernels ** list, int n_max) {
    const struct dqrelo_kernels * found[3];
    int n = 0;
#ifdef DQRELO_CPU_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        found[n++] = &dqrelo_kernels_avx512vnni;
    }
#endif
    found[n++] = &dqrelo_kernels_scalar;

    const int n_out = n < n_max ? n : n_max;
    memcpy(list, found, n_out * sizeof(found[0]));
    return n_out;
}

static const struct dqrelo_kernels * choose() {
    const struct dqrelo_kernels * list[3];
    const int    n    = dqrelo_cpu_kernels_all(list, 3);
    const char * name = getenv("DQRELO_ISA");
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
