#pragma once

// GCC's _tile_loadconfig says that it reads 8 bytes of its 64 (amxtileintrin.h, seen in GCC 12). An optimising build then drops what
// llama.cpp writes into the others, and the instruction faults: any quantised model ended the process on a CPU with AMX. This one says
// what it reads. It is included before amx/mmq.cpp by the build (CMakeLists.txt).
#include <immintrin.h>

struct dqrelo_tile_config {
    unsigned char bytes[64];
};

static inline void dqrelo_tile_loadconfig(const void * config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const struct dqrelo_tile_config *) config));
}

#define _tile_loadconfig(config) dqrelo_tile_loadconfig(config)
