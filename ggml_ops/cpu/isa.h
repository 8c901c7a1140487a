// isa.h: the instruction set that the op runs on. It is chosen in ggml-base, so that whoever reports it needs no CPU backend: of those that
// are loadable a program has several files.
#pragma once

#include "ggml.h" // GGML_API

#ifdef __cplusplus
extern "C" {
#endif

// The instruction sets that have kernels, best first. The last one runs on every CPU.
enum dqrelo_isa {
    DQRELO_ISA_AVX512VNNI,
    DQRELO_ISA_AVXVNNI,
    DQRELO_ISA_AVX2,
    DQRELO_ISA_NEON,
    DQRELO_ISA_SCALAR,
    DQRELO_ISA_COUNT,
};

// Returns avx512vnni, avxvnni, avx2, neon or scalar.
GGML_API const char * dqrelo_isa_name(enum dqrelo_isa isa);

// Returns whether this build has its kernels and this CPU runs them.
GGML_API bool dqrelo_isa_is_supported(enum dqrelo_isa isa);

// Returns the best one that is supported, or the one that the environment variable DQRELO_ISA names. It is chosen once.
GGML_API enum dqrelo_isa dqrelo_isa_chosen(void);

#ifdef __cplusplus
}
#endif
