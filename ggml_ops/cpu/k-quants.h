// k-quants.h: the base's K-quants as F32. These are plain loops, which the compiler turns into each instruction set's vectors; ggml's own
// are compiled for every CPU. The files that include it are compiled with the flags of their instruction set, so that all is static.
#pragma once

#include "factor-types.h"

#define DQRELO_QK_K 256 // values in a block

// Value j is d s - dmin m times q, with s and m (6 bits) of its sub-block of 32 values: see dqrelo_six_bits_of. Sub-block 2 i has the lower
// four bits of qs[32 i] to qs[32 i + 31], sub-block 2 i + 1 the upper ones.
struct dqrelo_q4_k {
    uint16_t d, dmin; // F16
    uint8_t  scales[12];
    uint8_t  qs[DQRELO_QK_K / 2];
};

// The same with a fifth bit: that of value l of sub-block i is bit i of qh[l].
struct dqrelo_q5_k {
    uint16_t d, dmin; // F16
    uint8_t  scales[12];
    uint8_t  qh[DQRELO_QK_K / 8];
    uint8_t  qs[DQRELO_QK_K / 2];
};

// Value j is d * scales[j / 16] * (q - 32). Of each half, 128 values, sub-block i of 32 has four bits in ql, as in Q4_K but with the upper
// ones of the first two sub-blocks in the last two, and bits 2 i and 2 i + 1 of qh above them.
struct dqrelo_q6_k {
    uint8_t  ql[DQRELO_QK_K / 2];
    uint8_t  qh[DQRELO_QK_K / 4];
    int8_t   scales[DQRELO_QK_K / 16];
    uint16_t d; // F16
};

static_assert(sizeof(struct dqrelo_q4_k) == 144, "as ggml's block_q4_K");
static_assert(sizeof(struct dqrelo_q5_k) == 176, "as ggml's block_q5_K");
static_assert(sizeof(struct dqrelo_q6_k) == 210, "as ggml's block_q6_K");

static inline bool dqrelo_is_k_quant(enum ggml_type type) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q6_K;
}

// Twelve bytes hold eight numbers s and eight numbers m of 6 bits, the upper bits of the last four s and m in the first bytes:
//
//   byte    0 .. 3                      4 .. 7                      8 .. 11
//           s[k] | s[4 + k] >> 4 << 6   m[k] | m[4 + k] >> 4 << 6   (s[4 + k] & 15) | (m[4 + k] & 15) << 4
struct dqrelo_six_bits {
    int s, m;
};

static inline struct dqrelo_six_bits dqrelo_six_bits_of(const uint8_t * group, int k) {
    if (k < 4) {
        return { group[k] & 63, group[4 + k] & 63 };
    }
    return { (group[4 + k] & 15) | group[k - 4] >> 6 << 4, group[4 + k] >> 4 | group[k] >> 6 << 4 };
}

struct dqrelo_line { // q becomes factor * q - shift
    float factor, shift;
};

// Returns that of sub-block k.
static inline struct dqrelo_line line_of(float d, float dmin, const uint8_t * scales, int k) {
    const struct dqrelo_six_bits bits = dqrelo_six_bits_of(scales, k);
    return { d * (float) bits.s, dmin * (float) bits.m };
}

static inline void q4_k_to_float(const struct dqrelo_q4_k * block, float * out) {
    const float d = dqrelo_f16_to_f32(block->d), dmin = dqrelo_f16_to_f32(block->dmin);
    for (int i = 0; i < 4; i++, out += 64) {
        const uint8_t *          qs = block->qs + 32 * i;
        const struct dqrelo_line a = line_of(d, dmin, block->scales, 2 * i), b = line_of(d, dmin, block->scales, 2 * i + 1);
        for (int l = 0; l < 32; l++) {
            out[l]      = a.factor * (float) (qs[l] & 15) - a.shift;
            out[32 + l] = b.factor * (float) (qs[l] >> 4) - b.shift;
        }
    }
}

static inline void q5_k_to_float(const struct dqrelo_q5_k * block, float * out) {
    const float d = dqrelo_f16_to_f32(block->d), dmin = dqrelo_f16_to_f32(block->dmin);
    for (int i = 0; i < 4; i++, out += 64) {
        const uint8_t *          qs = block->qs + 32 * i;
        const struct dqrelo_line a = line_of(d, dmin, block->scales, 2 * i), b = line_of(d, dmin, block->scales, 2 * i + 1);
        for (int l = 0; l < 32; l++) {
            const int high = block->qh[l] >> (2 * i);
            out[l]         = a.factor * (float) ((qs[l] & 15) | (high & 1) << 4) - a.shift;
            out[32 + l]    = b.factor * (float) (qs[l] >> 4 | (high & 2) << 3) - b.shift;
        }
    }
}

// Sets out to sub-block I of a half, whose two scales are given.
template <int I>
static inline void q6_k_sub_block(const uint8_t * ql, const uint8_t * qh, float first, float second, float * out) {
    for (int l = 0; l < 32; l++) {
        const int four = ql[32 * (I % 2) + l] >> (I / 2 * 4) & 15, two = qh[l] >> (2 * I) & 3;
        out[l] = (l < 16 ? first : second) * (float) ((four | two << 4) - 32);
    }
}

static inline void q6_k_to_float(const struct dqrelo_q6_k * block, float * out) {
    const float d = dqrelo_f16_to_f32(block->d);
    for (int half = 0; half < 2; half++, out += 128) {
        const uint8_t *ql = block->ql + 64 * half, *qh = block->qh + 32 * half;
        float          factor[8];
        for (int k = 0; k < 8; k++) {
            factor[k] = d * (float) block->scales[8 * half + k];
        }
        q6_k_sub_block<0>(ql, qh, factor[0], factor[1], out);
        q6_k_sub_block<1>(ql, qh, factor[2], factor[3], out + 32);
        q6_k_sub_block<2>(ql, qh, factor[4], factor[5], out + 64);
        q6_k_sub_block<3>(ql, qh, factor[6], factor[7], out + 96);
    }
}

// Sets out[j] to value j of n, a multiple of 256.
static inline void k_quant_to_float(enum ggml_type type, const void * src, int64_t n, float * out) {
    for (int64_t b = 0; b < n / DQRELO_QK_K; b++, out += DQRELO_QK_K) {
        switch (type) {
            case GGML_TYPE_Q4_K: q4_k_to_float((const struct dqrelo_q4_k *) src + b, out); break;
            case GGML_TYPE_Q5_K: q5_k_to_float((const struct dqrelo_q5_k *) src + b, out); break;
            case GGML_TYPE_Q6_K: q6_k_to_float((const struct dqrelo_q6_k *) src + b, out); break;
            default: break;
        }
    }
}
