// neon.cpp: the kernels of kernels.h for AArch64 with the dot product instructions of Armv8.2, which take 16 signs or 4 floats at once.
//
// Signs: 16 bytes of a row of signs are a group of 128 columns. The instruction cmtst with the constant 1 << k makes of them the bytes m,
// -1 where the bit is set, else 0, of the 16 columns k, k + 8, ..., k + 120. So q is copied, a piece at a time, into an order in which
// those columns lie side by side:
//
//   group of 128 columns   k = 0                                      k = 1                       ...
//                          hi 0 8 .. 120       lo 0 8 .. 120          hi 1 9 .. 121               ...
//                          byte 0..15          16..31                 32..47                      ...
//
// With P the sum of the q_j whose bit is set, sum_j s_j q_j = 2 P - sum_j q_j, and -P = 256 sum_j m_j hi_j + sum_j m_j lo_j, where each sum
// is one sdot. 32-bit lanes wrap around, and the result fits (dqrelo_q_max), so it is exact. 16 signs and T rows of q need 1 cmtst and 2 T
// sdot, and besides 1/8 loads of signs, 2 T / R of q and 1 / R of the constant, for which cores have pipes of their own. In vector
// instructions that is:
//
//   rows of q (T) x rows of signs (R)    1 x 4    2 x 4    3 x 2    4 x 2
//   for 16 signs and one row of q        3        2.5      2.33     2.25
//
// With one row that is 1.3 bytes of signs a cycle for two vector pipes (Cortex-A76, Neoverse N1), 2.7 for four (Apple M1, Neoverse V1).
// The copy takes 48 vector instructions and 32 loads and stores for a group and a row of q, against 18 to 24 for each row of signs: that is
// 5 % of a call with 64 rows. q is padded with zeros, so at the end of a row only the load of the last group of signs must stop.
//
// Floats: lane l of an accumulator adds columns l, l + 4, ... in order, then the 4 lanes are added in one fixed tree. The end of a row is
// copied beside zeros.

#include "bits.h"
#include "factor-kernels.h"
#include "factor-types.h"
#include "kernels.h"
#include "prefetch.h"
#include "unrolled.h"

#include <arm_neon.h>

// Reads 4 floats, of which n are there; the others become zeros.
static inline float32x4_t load_f32x4(const float * src, int64_t n) {
    if (n >= 4) {
        return vld1q_f32(src);
    }
    float values[4] = { 0.0f };
    if (n > 0) {
        memcpy(values, src, (size_t) n * sizeof(float));
    }
    return vld1q_f32(values);
}

//
// quantised activation
//

static inline float32x4_t scaled_f32x4(const float * x, const float * cscale, int64_t j, int64_t n) {
    const float32x4_t v = load_f32x4(x + j, n - j);
    return cscale ? vmulq_f32(v, load_f32x4(cscale + j, n - j)) : v;
}

static void quantize_row_neon(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    uint32x4_t       max_u32x4 = vdupq_n_u32(0);
    for (int64_t j = 0; j < n; j += 4) {
        max_u32x4 = vmaxq_u32(max_u32x4, vandq_u32(vreinterpretq_u32_f32(scaled_f32x4(x, cscale, j, n)), magnitude));
    }
    const uint32_t max_bits = vmaxvq_u32(max_u32x4);
    const float    q_max    = (float) dqrelo_q_max(n);
    const float    v_max    = dqrelo_f32_from_bits(max_bits);
    const float    inv      = q_max / v_max;

    const bool        finite    = max_bits < 0x7f800000;
    const bool        zero      = dqrelo_f32_bits(inv) >= 0x7f800000; // scalar.cpp has the same test.
    const float32x4_t inv_f32x4 = vdupq_n_f32(finite && !zero ? inv : 0.0f);
    act->tables                 = nullptr;
    act->d                      = !finite ? dqrelo_f32_from_bits(0x7fc00000) : zero ? 0.0f : v_max / q_max;

    int32x4_t sum_i32x4 = vdupq_n_s32(0);
    for (int64_t j = 0; j < dqrelo_q_bytes(n) / 2; j += 8) {
        // This rounds to nearest even. NaN, which infinity times 0 is too, becomes 0.
        const int32x4_t v0    = vcvtnq_s32_f32(vmulq_f32(scaled_f32x4(x, cscale, j, n), inv_f32x4));
        const int32x4_t v1    = vcvtnq_s32_f32(vmulq_f32(scaled_f32x4(x, cscale, j + 4, n), inv_f32x4));
        int8_t *        block = q + j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + j % DQRELO_Q_BLOCK;
        vst1_s8(block, vmovn_s16(vcombine_s16(vrshrn_n_s32(v0, 8), vrshrn_n_s32(v1, 8)))); // The high byte is (v + 128) >> 8.
        vst1_s8(block + DQRELO_Q_BLOCK, vmovn_s16(vcombine_s16(vmovn_s32(v0), vmovn_s32(v1))));
        sum_i32x4 = vaddq_s32(sum_i32x4, vaddq_s32(v0, v1));
    }
    act->sum = vaddvq_s32(sum_i32x4);
}

//
// sign planes
//

static constexpr int64_t GROUP        = 128; // columns in a group: 16 bytes of signs
static constexpr int64_t PIECE_GROUPS = 64;  // groups of all rows of q in a piece: 16 KiB, half of the smallest L1 cache

// Copies those of 128 bytes that lie at k, k + 8, ..., k + 120 to out + 32 k. Each round parts the even from the odd ones.
static inline void part_by_8(const int8_t * first, const int8_t * second, int8_t * out) {
    int8x16_t v[8];
    UNROLLED
    for (int i = 0; i < 4; i++) {
        v[i]     = vld1q_s8(first + 16 * i);
        v[i + 4] = vld1q_s8(second + 16 * i);
    }
    UNROLLED
    for (int round = 0; round < 3; round++) {
        int8x16_t parted[8];
        UNROLLED
        for (int i = 0; i < 4; i++) {
            parted[i]     = vuzp1q_s8(v[2 * i], v[2 * i + 1]);
            parted[i + 4] = vuzp2q_s8(v[2 * i], v[2 * i + 1]);
        }
        UNROLLED
        for (int i = 0; i < 8; i++) {
            v[i] = parted[i];
        }
    }
    UNROLLED
    for (int k = 0; k < 8; k++) {
        vst1q_s8(out + 32 * k, v[k]);
    }
}

// Copies q of n_groups groups into the order of the masks. Of q n_blocks blocks are there; the others become zeros.
static void reorder(const int8_t * q, int64_t n_blocks, int64_t n_groups, int8_t * out) {
    static const int8_t zeros[2 * DQRELO_Q_BLOCK] = { 0 };
    for (int64_t g = 0; g < n_groups; g++) {
        const int8_t * block0 = q + 2 * g * (2 * DQRELO_Q_BLOCK);
        const int8_t * block1 = 2 * g + 1 < n_blocks ? block0 + 2 * DQRELO_Q_BLOCK : zeros;
        part_by_8(block0, block1, out + g * (2 * GROUP));
        part_by_8(block0 + DQRELO_Q_BLOCK, block1 + DQRELO_Q_BLOCK, out + g * (2 * GROUP) + 16);
    }
}

// Reads 128 signs, of which n_bytes bytes are there; the others become zeros.
static inline uint8x16_t load_signs(const uint8_t * sign, int64_t n_bytes) {
    if (n_bytes >= 16) {
        return vld1q_u8(sign);
    }
    uint8_t values[16] = { 0 };
    memcpy(values, sign, (size_t) n_bytes);
    return vld1q_u8(values);
}

// The sums of products of R rows of signs with T rows of q.
template <int R, int T>
struct sign_sums {
    int32x4_t hi[R][T];
    int32x4_t lo[R][T];
};

#define BIT16(b) { b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b }
alignas(16) static const uint8_t BITS[8][16] = { BIT16(1), BIT16(2), BIT16(4), BIT16(8), BIT16(16), BIT16(32), BIT16(64), BIT16(128) };

// Adds one group. The T rows of q are in the order of the masks, q_stride bytes apart. Of each row of signs n_bytes bytes are there.
template <int R, int T>
static inline void sign_group(sign_sums<R, T> & sums, const uint8_t * const * row, int64_t n_bytes, const int8_t * q, int64_t q_stride) {
    uint8x16_t sign_u8x16[R];
    UNROLLED
    for (int r = 0; r < R; r++) {
        sign_u8x16[r] = load_signs(row[r], n_bytes);
    }
    // This stays a loop: unrolled, GCC moves the loads of all 8 bodies to the front, and then has no registers for the sums.
    _Pragma("GCC unroll 1") for (int k = 0; k < 8; k++) {
        const uint8x16_t bit = vld1q_u8(BITS[k]);
        int8x16_t        q_hi[T], q_lo[T];
        UNROLLED
        for (int t = 0; t < T; t++) {
            q_hi[t] = vld1q_s8(q + t * q_stride + 32 * k);
            q_lo[t] = vld1q_s8(q + t * q_stride + 32 * k + 16);
        }
        UNROLLED
        for (int r = 0; r < R; r++) {
            const int8x16_t set = vreinterpretq_s8_u8(vtstq_u8(sign_u8x16[r], bit));
            UNROLLED
            for (int t = 0; t < T; t++) {
                sums.hi[r][t] = vdotq_s32(sums.hi[r][t], set, q_hi[t]);
                sums.lo[r][t] = vdotq_s32(sums.lo[r][t], set, q_lo[t]);
            }
        }
    }
}

// Adds 2 P to out[t*ld + r] for R rows of signs, row_bytes apart, or the first n_i of them. Of each row n_bytes bytes are multiplied.
template <int R, int T>
static void sign_dots_tile(const uint8_t * const * row, int64_t row_bytes, int n_i, int64_t n_bytes, const int8_t * q, int64_t q_stride,
                           int32_t * out, int64_t ld, struct dqrelo_ahead & ahead) {
    sign_sums<R, T> sums;
    UNROLLED
    for (int r = 0; r < R; r++) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            sums.hi[r][t] = sums.lo[r][t] = vdupq_n_s32(0);
        }
    }
    const uint8_t * at[R];
    UNROLLED
    for (int r = 0; r < R; r++) {
        at[r] = row[r];
    }
    // Each group prefetches the same columns of one of the next R rows, since a cache line holds 4 groups of one row, and a line of what is
    // read afterwards for each 4 groups of one row.
    const uintptr_t next = (uintptr_t) row[0] + (uintptr_t) (R * row_bytes);
    int64_t         g    = 0;
    for (; 16 * g + 16 <= n_bytes; g++) {
        __builtin_prefetch((const void *) (next + (uintptr_t) (g % R * row_bytes + 16 * g)));
        if (g % (4 / (R < 4 ? R : 4)) == 0) {
            prefetch_ahead(ahead);
        }
        sign_group<R, T>(sums, at, 16, q + g * (2 * GROUP), q_stride);
        UNROLLED
        for (int r = 0; r < R; r++) {
            at[r] += 16;
        }
    }
    q += g * (2 * GROUP);
    n_bytes -= 16 * g;
    if (n_bytes > 0) {
        sign_group<R, T>(sums, at, n_bytes, q, q_stride);
    }
    UNROLLED
    for (int r = 0; r < R; r++) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            const uint32x4_t hi = vshlq_n_u32(vreinterpretq_u32_s32(sums.hi[r][t]), 8);
            const uint32_t   p  = 0 - vaddvq_u32(vaddq_u32(hi, vreinterpretq_u32_s32(sums.lo[r][t])));
            if (r < n_i) {
                out[t * ld + r] = (int32_t) ((uint32_t) out[t * ld + r] + 2 * p);
            }
        }
    }
}

template <int T>
static void sign_dots_rows(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int64_t n,
                           int32_t * out, int64_t ld, struct dqrelo_ahead & ahead) {
    constexpr int      R        = T <= 2 ? 4 : 2; // There are at most 16 sums in the 32 registers.
    constexpr int64_t  n_groups = PIECE_GROUPS / T;
    alignas(64) int8_t piece[T * n_groups * 2 * GROUP];

    for (int t = 0; t < T; t++) {
        for (int i = 0; i < n_i; i++) {
            out[t * ld + i] = -act[t].sum;
        }
    }
    const int64_t n_all = (n + GROUP - 1) / GROUP;
    for (int64_t g0 = 0; g0 < n_all; g0 += n_groups) {
        const int64_t n_here   = n_all - g0 < n_groups ? n_all - g0 : n_groups;
        const int64_t n_blocks = dqrelo_q_bytes(n) / (2 * DQRELO_Q_BLOCK) - 2 * g0;
        const int64_t n_bytes  = n / 8 - 16 * g0 < 16 * n_here ? n / 8 - 16 * g0 : 16 * n_here;
        for (int t = 0; t < T; t++) {
            reorder(q + t * q_stride + g0 * (2 * GROUP), n_blocks, n_here, piece + t * n_groups * (2 * GROUP));
        }
        for (int i = 0; i < n_i; i += R) {
            const uint8_t * row[R]; // Behind the end the last row is taken again.
            for (int r = 0; r < R; r++) {
                row[r] = sign + (i + r < n_i ? i + r : n_i - 1) * (n / 8) + 16 * g0;
            }
            sign_dots_tile<R, T>(row, n / 8, n_i - i, n_bytes, piece, n_groups * (2 * GROUP), out + i, ld, ahead);
        }
    }
}

static void sign_dots_neon(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                           const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    for (int k = 0; k < n_tiles; k++) {
        for (int t = 0, n_step; t < n_t; t += n_step) {
            const uint8_t * sign = tiles[k].sign;
            const int       n_i  = tiles[k].n_i;
            int32_t *       out  = tiles[k].out + t * ld;
            const int       left = n_t - t;
            n_step               = left == 5 ? 3 : left < 4 ? left : 4; // Five rows are taken as 3 + 2.
            switch (n_step) {
                case 1: sign_dots_rows<1>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out, ld, *ahead); break;
                case 2: sign_dots_rows<2>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out, ld, *ahead); break;
                case 3: sign_dots_rows<3>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out, ld, *ahead); break;
                case 4: sign_dots_rows<4>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out, ld, *ahead); break;
            }
        }
    }
}

//
// factors
//

namespace {

// Reads 8 16-bit values of a row from column j on, of which n are there; the others become zeros. The end of a row is read with what lies
// before it, which is shifted out.
inline uint16x8_t load_u16x8(const uint16_t * row, int64_t j, int64_t n) {
    if (n >= 8) {
        return vld1q_u16(row + j);
    }
    if (j >= 8) {
        static constexpr uint8_t FROM[32] = { 0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                              16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16 };
        return vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(row + j + n - 8)), vld1q_u8(FROM + 2 * (8 - n))));
    }
    uint16_t values[8] = { 0 };
    memcpy(values, row, (size_t) n * sizeof(uint16_t));
    return vld1q_u16(values);
}

inline float f16_to_f32(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

// Returns d * q, which is exact, because 11 by 8 bits fit in the 24 of an F32.
inline float32x4x2_t times_f32x8(float d, int8x8_t q) {
    const int16x8_t q_i16x8 = vmovl_s8(q);
    return { { vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(q_i16x8))), d), vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(q_i16x8)), d) } };
}

struct neon { // The comment in factor-kernels.h describes it.
    using vectors                   = float32x4x2_t;
    using sums                      = float32x4_t;
    static constexpr int STEP       = 8;
    static constexpr int MAX_T      = 4;
    static constexpr int PREFETCH_T = 4;

    // There are at least 8 sums, enough for two pipes with a latency of 4 cycles, and at most 16, in 32 registers.
    static int           rows_at_once(int t, int n_t) { return n_t - t < 4 ? n_t - t : 4; }
    static constexpr int rows_of_a(int T) { return T == 1 ? 8 : 4; }

    struct f32 {
        static constexpr int        BYTES = 32;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t n) {
            const float * src = (const float *) row + j;
            return { { load_f32x4(src, n), load_f32x4(src + 4, n - 4) } };
        }
    };

    struct f16 {
        static constexpr int        BYTES = 16;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t n) {
            const float16x8_t h = vreinterpretq_f16_u16(load_u16x8((const uint16_t *) row, j, n));
            return { { vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h) } };
        }
    };

    struct bf16 {
        static constexpr int        BYTES = 16;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t n) {
            const uint16x8_t b    = load_u16x8((const uint16_t *) row, j, n);
            const uint16x8_t zero = vdupq_n_u16(0);
            return { { vreinterpretq_f32_u16(vzip1q_u16(zero, b)), vreinterpretq_f32_u16(vzip2q_u16(zero, b)) } };
        }
    };

    struct q8_0 {
        static constexpr int        BYTES = 9;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q8_0 * block = (const struct dqrelo_q8_0 *) row + j / DQRELO_QK;
            return times_f32x8(f16_to_f32(block->d), vld1_s8(block->qs + j % DQRELO_QK));
        }
    };

    struct q4_0 {
        static constexpr int        BYTES = 5;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q4_0 * block  = (const struct dqrelo_q4_0 *) row + j / DQRELO_QK;
            const uint8x8_t            pairs  = vld1_u8(block->qs + j % 16);
            const uint8x8_t            nibble = j % DQRELO_QK < 16 ? vand_u8(pairs, vdup_n_u8(15)) : vshr_n_u8(pairs, 4);
            return times_f32x8(f16_to_f32(block->d), vsub_s8(vreinterpret_s8_u8(nibble), vdup_n_s8(8)));
        }
    };

    struct f8 {
        static constexpr int        BYTES = 8;
        static inline float32x4x2_t at(const void * row, int64_t j, int64_t n) {
            uint8_t bytes[8] = { 0 };
            memcpy(bytes, (const uint8_t *) row + j, (size_t) (n < 8 ? n : 8));
            const float16x8_t h = vreinterpretq_f16_u16(vshll_n_u8(vld1_u8(bytes), 8));
            return { { vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h) } };
        }
    };

    static inline void        hold(float32x4x2_t & /* v */) {}
    static inline float32x4_t zero() { return vdupq_n_f32(0.0f); }
    static inline void        add(float32x4_t & acc, const float32x4x2_t & a, const float32x4x2_t & b) {
        acc = vfmaq_f32(acc, a.val[0], b.val[0]);
        acc = vfmaq_f32(acc, a.val[1], b.val[1]);
    }

    static constexpr int PRODUCTS_COLUMNS = 512;
    static constexpr int PRODUCTS_R       = 4; // With 4 rows of b these are 16 sums, and 10 registers for what they are made of.
    static constexpr int PRODUCTS_T       = 4;

    static constexpr int LANES = 4;

    static inline float32x4_t load_sums(const float * lanes) { return vld1q_f32(lanes); }

    static inline float32x4x2_t expand(const float *& values, const uint8_t * bits, int64_t j, int64_t /* n */) {
        float v[8];
        expand_bits(values, bits + j / 8, 8, v);
        values += __builtin_popcount(bits[j / 8]);
        return { { vld1q_f32(v), vld1q_f32(v + 4) } };
    }

    static inline void add_totals(float * out, const float32x4_t (&four)[4], int n, bool add) {
        float values[4] = { 0.0f };
        for (int i = 0; add && i < n && i < 4; i++) {
            values[i] = out[i];
        }
        const float32x4_t totals = vpaddq_f32(vpaddq_f32(four[0], four[1]), vpaddq_f32(four[2], four[3]));
        vst1q_f32(values, vaddq_f32(vld1q_f32(values), totals));
        for (int i = 0; i < n && i < 4; i++) {
            out[i] = values[i];
        }
    }

    static inline void store_totals(float * out, const float32x4_t (&four)[4], int n) {
        const float32x4_t totals = vpaddq_f32(vpaddq_f32(four[0], four[1]), vpaddq_f32(four[2], four[3]));
        if (n >= 4) {
            vst1q_f32(out, totals);
        } else if (n > 0) {
            float values[4];
            vst1q_f32(values, totals);
            memcpy(out, values, (size_t) n * sizeof(float));
        }
    }

    static inline void store(float * out, const float32x4x2_t & v, int64_t n) {
        if (n >= 8) {
            vst1q_f32_x2(out, v);
            return;
        }
        float values[8];
        vst1q_f32_x2(values, v);
        memcpy(out, values, (size_t) n * sizeof(float));
    }
};

} // namespace

//
// sum of the parts
//

static void add_delta_neon(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts) {
    int i = 0;
    for (; i + 4 <= n_i; i += 4) {
        float32x4_t delta = parts->uv ? vld1q_f32(parts->uv + i) : vdupq_n_f32(0.0f);
        for (int p = 0; p < parts->n_planes; p++) {
            const float32x4_t scale = parts->scale_step[p] ? vld1q_f32(parts->scale[p] + i) : vdupq_n_f32(parts->scale[p][0]);
            delta                   = vfmaq_f32(delta, vmulq_n_f32(scale, parts->d), vcvtq_f32_s32(vld1q_s32(parts->isum[p] + i)));
        }
        if (parts->zsum) {
            delta = vfmaq_n_f32(delta, vcvtq_f32_s32(vld1q_s32(parts->zsum + i)), parts->dz);
        }
        vst1q_f32(dst + i, vfmaq_n_f32(vld1q_f32(y + i), delta, parts->s));
    }
    for (; i < n_i; i++) { // The arithmetic is the same for the last ones.
        float delta = parts->uv ? parts->uv[i] : 0.0f;
        for (int p = 0; p < parts->n_planes; p++) {
            delta = __builtin_fmaf(parts->scale[p][i * parts->scale_step[p]] * parts->d, (float) parts->isum[p][i], delta);
        }
        if (parts->zsum) {
            delta = __builtin_fmaf((float) parts->zsum[i], parts->dz, delta);
        }
        dst[i] = __builtin_fmaf(delta, parts->s, y[i]);
    }
}

// Returns value where the bit of a lane is set, else -value.
static inline float32x4_t signed_f32x4(float32x4_t value, uint8_t bits, uint32x4_t bit_of) {
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), bit_of), value, vnegq_f32(value));
}

static void fold_signs_neon(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n) {
    const uint32_t   low_bits[4] = { 1, 2, 4, 8 };
    const uint32x4_t low         = vld1q_u32(low_bits);
    const uint32x4_t high        = vshlq_n_u32(low, 4);
    for (int64_t j = 0; j < n; j += 8) {
        const float32x4_t first  = cscale ? vmulq_n_f32(vld1q_f32(cscale + j), scale) : vdupq_n_f32(scale);
        const float32x4_t second = cscale ? vmulq_n_f32(vld1q_f32(cscale + j + 4), scale) : vdupq_n_f32(scale);
        vst1q_f32(w + j, vaddq_f32(vld1q_f32(w + j), signed_f32x4(first, sign[j / 8], low)));
        vst1q_f32(w + j + 4, vaddq_f32(vld1q_f32(w + j + 4), signed_f32x4(second, sign[j / 8], high)));
    }
}

const struct dqrelo_kernels dqrelo_kernels_neon = {
    /*.name         =*/"neon",
    /*.interleaves   =*/false,
    /*.multiplies_early =*/false,
    /*.takes_transposed =*/false,
    /*.tile_t        =*/DQRELO_TILE_T,
    /*.tile_i        =*/DQRELO_TILE_I,
    /*.quantize_row =*/quantize_row_neon,
    /*.sign_dots    =*/sign_dots_neon,
    /*.tables_bytes =*/nullptr,
    /*.make_tables  =*/nullptr,
    /*.dots         =*/dots_of_isa<neon>,
    /*.add_delta    =*/add_delta_neon,
    /*.to_float     =*/to_float_of_isa<neon>,
    /*.fold_signs   =*/fold_signs_neon,
    /*.products     =*/products_of_isa<neon>,
    /*.tile_products =*/products_of_isa<neon>,
    /*.quantize_i16 =*/nullptr,
    /*.products_i16 =*/nullptr,
    /*.count_bits   =*/count_bits,
    /*.expand       =*/expand_bits,
    /*.mask_products =*/mask_products_of_isa<neon>,
    /*.list_products =*/list_products_of_isa<neon>,
};
