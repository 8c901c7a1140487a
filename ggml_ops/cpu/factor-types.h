// factor-types.h: the storage types of U, V and dense deltas: how many bytes a row takes, and how to read one value.
#pragma once

#include "ggml.h" // enum ggml_type

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DQRELO_DEVICE __host__ __device__ // Kernels for GPUs read the same types.
#else
#define DQRELO_DEVICE
#endif

#define DQRELO_QK 32 // values in a block of Q8_0 and Q4_0

struct dqrelo_q8_0 { // Value j is d * qs[j].
    uint16_t d;      // F16
    int8_t   qs[DQRELO_QK];
};

struct dqrelo_q4_0 { // Value j < 16 is d * ((qs[j] & 15) - 8), value j >= 16 is d * ((qs[j - 16] >> 4) - 8).
    uint16_t d;      // F16
    uint8_t  qs[DQRELO_QK / 2];
};

static_assert(sizeof(struct dqrelo_q8_0) == 34, "as ggml's block_q8_0");
static_assert(sizeof(struct dqrelo_q4_0) == 18, "as ggml's block_q4_0");

// Returns the bytes of n contiguous values; 0 for a type that is none of ours.
static inline DQRELO_DEVICE int64_t dqrelo_type_bytes(enum ggml_type type, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32: return n * 4;
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16: return n * 2;
        case GGML_TYPE_Q8_0: return n / DQRELO_QK * (int64_t) sizeof(struct dqrelo_q8_0);
        case GGML_TYPE_Q4_0: return n / DQRELO_QK * (int64_t) sizeof(struct dqrelo_q4_0);
        default: return 0;
    }
}

static inline DQRELO_DEVICE float dqrelo_f32_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline DQRELO_DEVICE uint32_t dqrelo_f32_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

// This is exact for every F16, subnormals, infinities and NaN included.
static inline float dqrelo_f16_to_f32(uint16_t h) {
    const uint32_t sign     = (uint32_t) (h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 0x1f;
    const uint32_t mantissa = h & 0x3ff;
    if (exponent == 0) { // The value is mantissa * 2^-24.
        const float value = (float) mantissa * dqrelo_f32_from_bits(0x33800000);
        return sign ? -value : value;
    }
    const uint32_t exponent_f32 = exponent == 31 ? 255 : exponent + (127 - 15);
    return dqrelo_f32_from_bits(sign | exponent_f32 << 23 | mantissa << 13);
}

static inline float dqrelo_bf16_to_f32(uint16_t b) {
    return dqrelo_f32_from_bits((uint32_t) b << 16);
}
