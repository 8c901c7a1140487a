// dispatch.cpp: the table of kernels of each instruction set.

#include "isa.h"
#include "kernels.h"

static const struct dqrelo_kernels * table_of(enum dqrelo_isa isa) {
    switch (isa) {
#ifdef DQRELO_CPU_X86
        case DQRELO_ISA_AVX512VNNI: return &dqrelo_kernels_avx512vnni;
        case DQRELO_ISA_AVX2: return &dqrelo_kernels_avx2;
#endif
#ifdef DQRELO_CPU_AVXVNNI
        case DQRELO_ISA_AVXVNNI: return &dqrelo_kernels_avxvnni;
#endif
#ifdef DQRELO_CPU_AARCH64
        case DQRELO_ISA_NEON: return &dqrelo_kernels_neon;
#endif
        default: return &dqrelo_kernels_scalar;
    }
}

int dqrelo_cpu_kernels_all(const struct dqrelo_kernels ** list, int n_max) {
    int n = 0;
    for (int i = 0; i < DQRELO_ISA_COUNT; i++) {
        if (n < n_max && dqrelo_isa_is_supported((enum dqrelo_isa) i)) {
            list[n++] = table_of((enum dqrelo_isa) i);
        }
    }
    return n;
}

const struct dqrelo_kernels * dqrelo_cpu_kernels(void) {
    static const struct dqrelo_kernels * const kernels = table_of(dqrelo_isa_chosen());
    return kernels;
}
