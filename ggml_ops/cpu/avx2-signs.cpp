// avx2-signs.cpp: products with sign planes for AVX2, 32 signs a step.
//
// 32 sign bits become 32 bytes b, 1 where the bit is set, else 0: the word is broadcast, each byte gets the one that holds its bit, keeps
// that bit and is clamped to 1. As in avx512vnni.cpp, sum_j s_j q_j = 2 P - sum_j q_j with P = 256 sum_j b_j hi_j + sum_j b_j lo_j.
// vpmaddubsw adds two products to a 16-bit lane, at most 256 in magnitude, so 127 steps fit before the lanes are widened to 32 bits. q is
// padded with zeros, so at the end of a row only the load of the last word must stop.

#include "avx2.h"
#include "prefetch.h"

#include <string.h>

// Reads 32 signs, of which n_bytes bytes are there; the others become zeros.
static inline uint32_t load_signs(const uint8_t * sign, int64_t n_bytes) {
    uint32_t bits = 0;
    if (n_bytes >= 4) {
        memcpy(&bits, sign, sizeof(bits));
    } else {
        memcpy(&bits, sign, (size_t) n_bytes);
    }
    return bits;
}

static inline __m256i signs_u8x32(uint32_t bits) {
    const __m256i byte_of =
        _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit_of = _mm256_set1_epi64x((long long) 0x8040201008040201ull);
    const __m256i bit    = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int) bits), byte_of), bit_of);
    return _mm256_min_epu8(bit, _mm256_set1_epi8(1));
}

// The sums of products of a row of signs with T rows of q, in 16-bit lanes.
template <int T>
struct sign_sums {
    __m256i hi[T];
    __m256i lo[T];
};

// Adds the 32 columns of step b. Of their signs n_bytes bytes are there.
template <int T>
static inline void sign_step(sign_sums<T> & sums, const uint8_t * sign, const int8_t * q, int64_t q_stride, int64_t b, int64_t n_bytes) {
    const int8_t * block = q + b / 2 * (2 * DQRELO_Q_BLOCK) + b % 2 * 32;
    const __m256i  set   = signs_u8x32(load_signs(sign + 4 * b, n_bytes));
    UNROLLED
    for (int t = 0; t < T; t++) {
        const __m256i q_hi = _mm256_loadu_si256((const __m256i *) (block + t * q_stride));
        const __m256i q_lo = _mm256_loadu_si256((const __m256i *) (block + t * q_stride + DQRELO_Q_BLOCK));
        sums.hi[t]         = _mm256_add_epi16(sums.hi[t], _mm256_maddubs_epi16(set, q_hi));
        sums.lo[t]         = _mm256_add_epi16(sums.lo[t], _mm256_maddubs_epi16(set, q_lo));
    }
}

// Adds 256 hi + lo of the steps b0 to b1 - 1, at most 127 of them, to p[t].
template <int T>
static inline void sign_steps(__m256i (&p)[T], const uint8_t * sign, const int8_t * q, int64_t q_stride, int64_t n, int64_t b0,
                              int64_t b1) {
    sign_sums<T> sums;
    UNROLLED
    for (int t = 0; t < T; t++) {
        sums.hi[t] = sums.lo[t] = _mm256_setzero_si256();
    }
    int64_t b = b0;
    for (; b < b1 && 32 * b + 32 <= n; b++) {
        sign_step<T>(sums, sign, q, q_stride, b, 4);
    }
    if (b < b1) {
        sign_step<T>(sums, sign, q, q_stride, b, n / 8 - 4 * b);
    }
    const __m256i one = _mm256_set1_epi16(1);
    UNROLLED
    for (int t = 0; t < T; t++) {
        const __m256i hi = _mm256_slli_epi32(_mm256_madd_epi16(sums.hi[t], one), 8);
        p[t]             = _mm256_add_epi32(p[t], _mm256_add_epi32(hi, _mm256_madd_epi16(sums.lo[t], one)));
    }
}

// Multiplies 4 rows of signs with T rows of q, and stores the results of the first n_i rows of signs.
template <int T>
static void sign_dots_tile(const uint8_t * const * row, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                           int64_t n, int32_t * out, int64_t ld) {
    __m256i p[4][T];
    for (int r = 0; r < 4; r++) {
        for (int t = 0; t < T; t++) {
            p[r][t] = _mm256_setzero_si256();
        }
    }
    const int64_t n_steps = (n + 31) / 32;
    for (int64_t b = 0; b < n_steps; b += 127) {
        for (int r = 0; r < 4; r++) {
            sign_steps<T>(p[r], row[r], q, q_stride, n, b, b + 127 < n_steps ? b + 127 : n_steps);
        }
    }
    for (int t = 0; t < T; t++) {
        const __m128i total = _mm_sub_epi32(_mm_slli_epi32(sums_i32x4(p[0][t], p[1][t], p[2][t], p[3][t]), 1), _mm_set1_epi32(act[t].sum));
        _mm_maskstore_epi32(out + t * ld, lanes_i32x4(n_i), total);
    }
}

template <int T>
static void sign_dots_rows(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int64_t n,
                           int32_t * out, int64_t ld) {
    for (int i = 0; i < n_i; i += 4) {
        const uint8_t * row[4]; // Behind the end the last row is taken again.
        for (int r = 0; r < 4; r++) {
            row[r] = sign + (i + r < n_i ? i + r : n_i - 1) * (n / 8);
        }
        sign_dots_tile<T>(row, n_i - i, q, q_stride, act, n, out + i, ld);
    }
}

//
// one row of q
//
// With one row of q, no other row shares the work of making b. So the columns are taken in another order, in which there is next to none:
// of 32 bytes of signs, 256 columns, bit k of all bytes at once. v & 2^k is 2^k b, and (v >> 4) & 2^k is that of bit k + 4, so four sums,
// one for each power, take both. That is 42 instructions for 256 signs, where signs_u8x32 needs 64. Each sum gets two products a step, at
// most 4096 in magnitude where k is 3, so 7 steps fit in 16 bits. q is brought into this order segment by segment, and all rows of the tile
// then use the segment.
//

static constexpr int STEP_COLUMNS  = 256;
static constexpr int SUM_STEPS     = 7;
static constexpr int SEGMENT_STEPS = 4 * SUM_STEPS; // So much of q, 14 KiB, is brought into the order at once.

// The bytes of q of one step: those of column 8 j + k are at [k][j].
struct q_by_bit {
    alignas(32) int8_t hi[8][32];
    alignas(32) int8_t lo[8][32];
};

// Sets out[k][j] to byte 8 j + k of four runs of 64 bytes, which begin at src and lie 128 bytes apart.
static inline void order_by_bit(int8_t (*out)[32], const int8_t * src) {
    const __m256i pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    __m256i       v[8], w[8];
    // The low half gets groups of 8 bytes 2 i and 2 i + 1, the high half 16 + 2 i and 17 + 2 i.
    for (int i = 0; i < 8; i++) {
        const __m128i low  = _mm_loadu_si128((const __m128i *) (src + i / 4 * 128 + i % 4 * 16));
        const __m128i high = _mm_loadu_si128((const __m128i *) (src + i / 4 * 128 + i % 4 * 16 + 256));
        v[i]               = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), pairs);
    }
    for (int i = 0; i < 4; i++) { // Here begins the transposition of 8 x 8 pairs of bytes.
        w[i]     = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        w[i + 4] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int h = 0; h < 8; h += 4) {
        v[h]     = _mm256_unpacklo_epi32(w[h], w[h + 1]);
        v[h + 1] = _mm256_unpacklo_epi32(w[h + 2], w[h + 3]);
        v[h + 2] = _mm256_unpackhi_epi32(w[h], w[h + 1]);
        v[h + 3] = _mm256_unpackhi_epi32(w[h + 2], w[h + 3]);
    }
    for (int h = 0; h < 8; h += 2) {
        _mm256_store_si256((__m256i *) out[h], _mm256_unpacklo_epi64(v[h], v[h + 1]));
        _mm256_store_si256((__m256i *) out[h + 1], _mm256_unpackhi_epi64(v[h], v[h + 1]));
    }
}

// Brings n columns of q into the order. The last step may be incomplete, because q is padded to whole blocks of 64 columns only.
static void order_segment(struct q_by_bit * out, const int8_t * q, int64_t n) {
    for (int64_t j = 0; j < n; j += STEP_COLUMNS, out++, q += 2 * STEP_COLUMNS) {
        alignas(32) int8_t last[2 * STEP_COLUMNS] = { 0 };
        const int8_t *     src                    = q;
        if (n - j < STEP_COLUMNS) {
            memcpy(last, q, (size_t) dqrelo_q_bytes(n - j));
            src = last;
        }
        order_by_bit(out->hi, src);
        order_by_bit(out->lo, src + DQRELO_Q_BLOCK);
    }
}

// Reads 256 signs, of which n_bytes bytes are there; the others become zeros.
static inline __m256i load_signs_u8x32(const uint8_t * sign, int64_t n_bytes) {
    if (n_bytes >= 32) {
        return _mm256_loadu_si256((const __m256i *) sign);
    }
    alignas(32) uint8_t bytes[32] = { 0 };
    memcpy(bytes, sign, (size_t) n_bytes);
    return _mm256_load_si256((const __m256i *) bytes);
}

// Adds 8 sum_j b_j hi_j to hi8 and 8 sum_j b_j lo_j to lo8, for n_bytes of signs, which are at most SUM_STEPS steps.
static inline void add_steps(__m256i & hi8, __m256i & lo8, const uint8_t * sign, int64_t n_bytes, int64_t ahead,
                             const struct q_by_bit * q) {
    __m256i hi[4], lo[4];
    UNROLLED
    for (int k = 0; k < 4; k++) {
        hi[k] = lo[k] = _mm256_setzero_si256();
    }
    for (; n_bytes > 0; n_bytes -= 32, sign += 32, q++) {
        __builtin_prefetch((const void *) ((uintptr_t) sign + (uintptr_t) ahead));
        const __m256i v = load_signs_u8x32(sign, n_bytes);
        const __m256i w = _mm256_srli_epi16(v, 4);
        UNROLLED
        for (int k = 0; k < 4; k++) {
            const __m256i power = _mm256_set1_epi8((char) (1 << k));
            const __m256i low   = _mm256_and_si256(v, power);
            const __m256i high  = _mm256_and_si256(w, power);
            hi[k]               = _mm256_add_epi16(hi[k], _mm256_maddubs_epi16(low, _mm256_load_si256((const __m256i *) q->hi[k])));
            lo[k]               = _mm256_add_epi16(lo[k], _mm256_maddubs_epi16(low, _mm256_load_si256((const __m256i *) q->lo[k])));
            hi[k]               = _mm256_add_epi16(hi[k], _mm256_maddubs_epi16(high, _mm256_load_si256((const __m256i *) q->hi[k + 4])));
            lo[k]               = _mm256_add_epi16(lo[k], _mm256_maddubs_epi16(high, _mm256_load_si256((const __m256i *) q->lo[k + 4])));
        }
    }
    UNROLLED
    for (int k = 0; k < 4; k++) {
        const __m256i weight = _mm256_set1_epi16((short) (8 >> k));
        hi8                  = _mm256_add_epi32(hi8, _mm256_madd_epi16(hi[k], weight));
        lo8                  = _mm256_add_epi32(lo8, _mm256_madd_epi16(lo[k], weight));
    }
}

// Returns 256 sum_j b_j hi_j + sum_j b_j lo_j, spread over 8 lanes, for n_bytes of signs, which are at most SEGMENT_STEPS steps.
static inline __m256i segment_sum(const uint8_t * sign, int64_t n_bytes, int64_t ahead, const struct q_by_bit * q) {
    constexpr int64_t N_BYTES = SUM_STEPS * STEP_COLUMNS / 8;
    __m256i           hi8     = _mm256_setzero_si256();
    __m256i           lo8     = _mm256_setzero_si256();
    for (; n_bytes > 0; n_bytes -= N_BYTES, sign += N_BYTES, q += SUM_STEPS) {
        add_steps(hi8, lo8, sign, n_bytes < N_BYTES ? n_bytes : N_BYTES, ahead, q);
    }
    return _mm256_add_epi32(_mm256_slli_epi32(hi8, 5), _mm256_srai_epi32(lo8, 3));
}

static void sign_dots_one(const uint8_t * sign, int n_i, const int8_t * q, const struct dqrelo_act * act, int64_t n, int32_t * out) {
    constexpr int64_t SEGMENT = SEGMENT_STEPS * STEP_COLUMNS;
    // The distance is in whole rows, so that the same segment of a later row is prefetched.
    const int64_t   ahead = ((int64_t) DQRELO_PREFETCH_BYTES + n / 8 - 1) / (n / 8) * (n / 8);
    struct q_by_bit ordered[SEGMENT_STEPS];
    for (int64_t j = 0; j < n; j += SEGMENT) {
        const int64_t n_columns = n - j < SEGMENT ? n - j : SEGMENT;
        order_segment(ordered, q + 2 * j, n_columns);
        for (int i = 0; i < n_i; i += 4) {
            __m256i p[4];
            for (int r = 0; r < 4; r++) { // Behind the end the last row is taken again.
                p[r] = segment_sum(sign + (i + r < n_i ? i + r : n_i - 1) * (n / 8) + j / 8, n_columns / 8, ahead, ordered);
            }
            const __m128i m      = lanes_i32x4(n_i - i);
            const __m128i total  = _mm_slli_epi32(sums_i32x4(p[0], p[1], p[2], p[3]), 1);
            const __m128i so_far = j == 0 ? _mm_set1_epi32(-act->sum) : _mm_maskload_epi32(out + i, m);
            _mm_maskstore_epi32(out + i, m, _mm_add_epi32(so_far, total));
        }
    }
}

void sign_dots_avx2(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t, int64_t n,
                    int32_t * out, int64_t ld) {
    for (int t = 0; t < n_t;) {
        const int left   = n_t - t;
        const int n_step = left == 4 ? 2 : left < 3 ? left : 3; // Four rows are taken as 2 + 2.
        switch (n_step) {
            case 1: sign_dots_one(sign, n_i, q + t * q_stride, act + t, n, out + t * ld); break;
            case 2: sign_dots_rows<2>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out + t * ld, ld); break;
            case 3: sign_dots_rows<3>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out + t * ld, ld); break;
        }
        t += n_step;
    }
}
