// bits.h: what is done with the bits of a mask, for the kernels of all instruction sets.
//
// The files that include this are compiled with the flags of their instruction set, so all functions here are static.
#pragma once

#include "kernels.h"

#include <string.h>

// dqrelo_kernels::count_bits
static int64_t count_bits(const uint8_t * bits, int64_t n) {
    int64_t sum = 0;
    int64_t at  = 0;
    for (; at + 8 <= n / 8; at += 8) {
        uint64_t word;
        memcpy(&word, bits + at, sizeof(word));
        sum += __builtin_popcountll(word);
    }
    for (; at < n / 8; at++) {
        sum += __builtin_popcount(bits[at]);
    }
    return sum;
}

// dqrelo_kernels::expand, bit by bit
static inline void expand_bits(const float * values, const uint8_t * bits, int64_t n, float * out) {
    for (int64_t j = 0; j < n; j += 8) {
        memset(out + j, 0, 8 * sizeof(float));
        for (unsigned left = bits[j / 8]; left; left &= left - 1) {
            out[j + __builtin_ctz(left)] = *values++;
        }
    }
}
