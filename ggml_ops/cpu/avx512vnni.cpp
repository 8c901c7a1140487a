// avx512vnni.cpp: the kernels of kernels.h for AVX-512 F, BW, VL, DQ and VNNI, which take 64 signs or 16 floats at once.
//
// Signs: 64 sign bits are a mask register as they lie in memory. With b = 1 where the bit is set, else 0,
//   sum_j s_j q_j = 2 P - sum_j q_j,   P = sum_j b_j q_j = 256 sum_j b_j hi_j + sum_j b_j lo_j
// and each of the two sums of P is one vpdpbusd a step (b are unsigned bytes, hi and lo signed ones; four products are added to each 32-bit
// lane). q is padded with zeros to 64 columns, so at the end of a row only the load of the last mask must stop.
//
// Floats: lane l of an accumulator adds columns l, l + 16, ... in order, then the 16 lanes are added in one fixed tree. The end of a row is
// read with masked loads.

#include "bits.h"
#include "factor-kernels.h"
#include "factor-types.h"
#include "kernels.h"
#include "prefetch.h"
#include "unrolled.h"

#include <immintrin.h>

// Returns the sums of the lanes of four vectors, in their order.
static inline __m128i sums_i32x4(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v0, v1), _mm512_unpackhi_epi32(v0, v1));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v2, v3), _mm512_unpackhi_epi32(v2, v3));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

static inline __m128 sums_f32x4(__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
    const __m512  a   = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
    const __m512  b   = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
    const __m512d a64 = _mm512_castps_pd(a);
    const __m512d b64 = _mm512_castps_pd(b);
    const __m512  c   = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a64, b64)), _mm512_castpd_ps(_mm512_unpackhi_pd(a64, b64)));
    const __m256  d   = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

// Returns the mask of those of the columns j to j + 15 that are below n.
static inline __mmask16 columns_m16(int64_t j, int64_t n) {
    return n - j >= 16 ? 0xffff : n - j <= 0 ? 0 : (__mmask16) ((1u << (n - j)) - 1);
}

// Returns the mask of the first n of four rows.
static inline __mmask8 rows_m4(int n) {
    return n >= 4 ? 15 : n <= 0 ? 0 : (__mmask8) ((1 << n) - 1);
}

//
// quantised activation
//

static inline __m512 scaled_f32x16(const float * x, const float * cscale, int64_t j, int64_t n) {
    const __mmask16 m = columns_m16(j, n);
    const __m512    v = _mm512_maskz_loadu_ps(m, x + j);
    return cscale ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, cscale + j)) : v;
}

static void quantize_row_avx512vnni(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act) {
    const __m512i magnitude  = _mm512_set1_epi32(0x7fffffff);
    __m512i       max_u32x16 = _mm512_setzero_si512();
    for (int64_t j = 0; j < n; j += 16) {
        const __m512i bits = _mm512_castps_si512(scaled_f32x16(x, cscale, j, n));
        max_u32x16         = _mm512_max_epu32(max_u32x16, _mm512_and_si512(bits, magnitude));
    }
    const uint32_t max_bits = _mm512_reduce_max_epu32(max_u32x16);
    const float    q_max    = (float) dqrelo_q_max(n);
    const float    v_max    = dqrelo_f32_from_bits(max_bits);
    const float    inv      = q_max / v_max;

    const bool   finite     = max_bits < 0x7f800000;
    const bool   zero       = dqrelo_f32_bits(inv) >= 0x7f800000; // scalar.cpp has the same test.
    const __m512 inv_f32x16 = _mm512_set1_ps(finite && !zero ? inv : 0.0f);
    act->d                  = !finite ? dqrelo_f32_from_bits(0x7fc00000) : zero ? 0.0f : v_max / q_max;

    const __m512i half       = _mm512_set1_epi32(128);
    __m512i       sum_i32x16 = _mm512_setzero_si512();
    for (int64_t j = 0; j < dqrelo_q_bytes(n) / 2; j += 16) {
        __m512i v      = _mm512_cvtps_epi32(_mm512_mul_ps(scaled_f32x16(x, cscale, j, n), inv_f32x16)); // This rounds to nearest even.
        v              = _mm512_maskz_mov_epi32(finite ? 0xffff : 0, v);
        int8_t * block = q + j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + j % DQRELO_Q_BLOCK;
        _mm_storeu_si128((__m128i *) block, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(v, half), 8)));
        _mm_storeu_si128((__m128i *) (block + DQRELO_Q_BLOCK), _mm512_cvtepi32_epi8(v));
        sum_i32x16 = _mm512_add_epi32(sum_i32x16, v);
    }
    act->sum = _mm512_reduce_add_epi32(sum_i32x16);
}

//
// sign planes
//

// Returns the signs in a row's last n_bytes < 8 bytes; the other bits are zero.
static inline __mmask64 last_signs(const uint8_t * sign, int64_t n_bytes) {
    return (__mmask64) _mm_cvtsi128_si64(_mm_maskz_loadu_epi8((__mmask16) ((1u << n_bytes) - 1), sign));
}

static inline __mmask64 next_signs(const uint8_t * sign) {
    uint64_t bits;
    memcpy(&bits, sign, sizeof(bits));
    return (__mmask64) bits;
}

// Signs 64 b to 64 b + 63 of a row of n; those behind its end are zero bits.
static inline __mmask64 signs_of_block(const uint8_t * row, int64_t b, int64_t n) {
    return b < n / 64 ? next_signs(row + 8 * b) : last_signs(row + 8 * b, n % 64 / 8);
}

// Adds the products of the unsigned bytes u and the signed bytes s to acc. This is assembler because GCC 12 copies the accumulators of the
// intrinsic in every step of a loop, which was measured to be 1.2 (one row) to 1.7 times (three rows) slower.
static inline void dot_i32x16(__m512i & acc, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
}

// Adds one block of 64 columns to the sums of products of R rows of signs with T rows of q.
template <int R, int T>
static inline __attribute__((always_inline)) void sign_step(__m512i (&hi)[R][T], __m512i (&lo)[R][T], const __mmask64 (&bits)[R],
                                                            const int8_t * q, int64_t q_stride) {
    __m512i q_hi[T], q_lo[T];
    UNROLLED
    for (int t = 0; t < T; t++) {
        q_hi[t] = _mm512_loadu_si512(q + t * q_stride);
        q_lo[t] = _mm512_loadu_si512(q + t * q_stride + DQRELO_Q_BLOCK);
    }
    UNROLLED
    for (int r = 0; r < R; r++) {
        const __m512i set = _mm512_maskz_mov_epi8(bits[r], _mm512_set1_epi8(1));
        UNROLLED
        for (int t = 0; t < T; t++) {
            dot_i32x16(hi[r][t], set, q_hi[t]);
            dot_i32x16(lo[r][t], set, q_lo[t]);
        }
    }
}

// Stores (accumulate ? out : -sum q) + 2 P of R rows of signs, or the first n_i of them, and T rows of q; R is a multiple of 4.
template <int R, int T>
static inline void store_sums(__m512i (&hi)[R][T], const __m512i (&lo)[R][T], int n_i, const struct dqrelo_act * act, bool accumulate,
                              int32_t * out, int64_t ld) {
    UNROLLED
    for (int t = 0; t < T; t++) {
        UNROLLED
        for (int r = 0; r < R; r++) {
            hi[r][t] = _mm512_add_epi32(_mm512_slli_epi32(hi[r][t], 8), lo[r][t]);
        }
        UNROLLED
        for (int r = 0; r < R; r += 4) {
            const __m128i p     = sums_i32x4(hi[r][t], hi[r + 1][t], hi[r + 2][t], hi[r + 3][t]);
            const __m128i begun = accumulate ? _mm_maskz_loadu_epi32(rows_m4(n_i - r), out + t * ld + r) : _mm_set1_epi32(-act[t].sum);
            _mm_mask_storeu_epi32(out + t * ld + r, rows_m4(n_i - r), _mm_add_epi32(begun, _mm_slli_epi32(p, 1)));
        }
    }
}

template <int R, int T>
static inline void set_zero(__m512i (&hi)[R][T], __m512i (&lo)[R][T]) {
    UNROLLED
    for (int r = 0; r < R; r++) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            hi[r][t] = lo[r][t] = _mm512_setzero_si512();
        }
    }
}

// One or two rows of q: memory is the limit, so each row of signs is read in one go, and what comes behind the tile is prefetched.
template <int R, int T>
static void sign_dots_few(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int64_t n,
                          int32_t * out, int64_t ld) {
    for (int i = 0; i < n_i; i += R) {
        const uint8_t * row[R]; // Behind the end the last row is taken again.
        for (int r = 0; r < R; r++) {
            row[r] = sign + (i + r < n_i ? i + r : n_i - 1) * (n / 8);
        }
        __m512i hi[R][T], lo[R][T];
        set_zero(hi, lo);
        uintptr_t next = prefetch_from(row[0], (size_t) (R * (n / 8)), DQRELO_CACHE_1);
        for (int64_t b = 0; b < (n + 63) / 64; b++, next += 64) {
            prefetch_lines<64, DQRELO_CACHE_1>(next);
            __mmask64 bits[R];
            UNROLLED
            for (int r = 0; r < R; r++) {
                bits[r] = signs_of_block(row[r], b, n);
            }
            sign_step<R, T>(hi, lo, bits, q + b * (2 * DQRELO_Q_BLOCK), q_stride);
        }
        store_sums<R, T>(hi, lo, n_i - i, act, false, out + i, ld);
    }
}

//
// many rows of q
//
// Arithmetic is the limit, so what is used again must stay in the first cache: a segment of 2048 columns of 64 rows of signs, 16 KiB, and
// the same segment of three rows of q, 12 KiB. The signs are gathered into one place, because the distance of their rows may be a power of
// two, and they would then compete for a few sets of that cache.
//

static constexpr int     MANY_R         = 4;
static constexpr int     MANY_T         = 3; // The sums take 2 * 4 * 3 of the 32 registers.
static constexpr int     MANY_ROWS      = 64;
static constexpr int64_t SEGMENT_BLOCKS = 32;

// The signs of a segment: bits[g] are rows 4 g to 4 g + 3, block by block.
struct sign_segment {
    __mmask64 bits[MANY_ROWS / MANY_R][SEGMENT_BLOCKS][MANY_R];
};

static void gather_signs(struct sign_segment * segment, const uint8_t * sign, int n_i, int64_t n, int64_t b0, int64_t b1) {
    for (int i = 0; i < (n_i + MANY_R - 1) / MANY_R * MANY_R; i++) {
        const uint8_t * row = sign + (i < n_i ? i : n_i - 1) * (n / 8); // Behind the end the last row is taken again.
        for (int64_t b = b0; b < b1; b++) {
            segment->bits[i / MANY_R][b - b0][i % MANY_R] = signs_of_block(row, b, n);
        }
    }
}

// Multiplies a segment with three rows of q. `ahead` is the q of the three rows after them: each group of rows prefetches a part of it.
static void sign_dots_segment(const struct sign_segment * segment, int n_i, const int8_t * q, int64_t q_stride,
                              const struct dqrelo_act * act, int64_t n_blocks, bool accumulate, int32_t * out, int64_t ld) {
    for (int g = 0; g * MANY_R < n_i; g++) {
        const int8_t * ahead = q + (MANY_T + g / 2 % MANY_T) * q_stride + g % 2 * n_blocks * 64;
        __m512i        hi[MANY_R][MANY_T], lo[MANY_R][MANY_T];
        set_zero(hi, lo);
        for (int64_t b = 0; b < n_blocks; b++) {
            prefetch_lines<64, DQRELO_CACHE_1>((uintptr_t) ahead + (uintptr_t) (b * 64));
            sign_step<MANY_R, MANY_T>(hi, lo, segment->bits[g][b], q + b * (2 * DQRELO_Q_BLOCK), q_stride);
        }
        store_sums<MANY_R, MANY_T>(hi, lo, n_i - g * MANY_R, act, accumulate, out + g * MANY_R, ld);
    }
}

// For numbers of rows of q, n_t, that are multiples of three.
static void sign_dots_many(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t,
                           int64_t n, int32_t * out, int64_t ld) {
    struct sign_segment segment;
    const int64_t       n_blocks = (n + 63) / 64;
    for (int i = 0; i < n_i; i += MANY_ROWS) {
        const int n_rows = n_i - i < MANY_ROWS ? n_i - i : MANY_ROWS;
        for (int64_t b0 = 0; b0 < n_blocks; b0 += SEGMENT_BLOCKS) {
            const int64_t b1 = b0 + SEGMENT_BLOCKS < n_blocks ? b0 + SEGMENT_BLOCKS : n_blocks;
            gather_signs(&segment, sign + i * (n / 8), n_rows, n, b0, b1);
            for (int t = 0; t < n_t; t += MANY_T) {
                sign_dots_segment(&segment, n_rows, q + t * q_stride + b0 * (2 * DQRELO_Q_BLOCK), q_stride, act + t, b1 - b0, b0 > 0,
                                  out + t * ld + i, ld);
            }
        }
    }
}

// Returns how many rows of q or b to take at once from row t on. The first two bring a tile of weights in from memory, with prefetches. The
// others find it in a cache and are taken by threes, whose sums take 24 registers.
static inline int rows_at_once(int t, int n_t) {
    const int most = t == 0 ? 2 : 3;
    return n_t - t < most ? n_t - t : most;
}

static void sign_dots_avx512vnni(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t,
                                 int64_t n, int32_t * out, int64_t ld) {
    for (int t = 0, n_step; t < n_t; t += n_step) {
        n_step = rows_at_once(t, n_t);
        switch (n_step) {
            case 1: sign_dots_few<8, 1>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out + t * ld, ld); break;
            case 2: sign_dots_few<4, 2>(sign, n_i, q + t * q_stride, q_stride, act + t, n, out + t * ld, ld); break;
            case 3:
                n_step = (n_t - t) / MANY_T * MANY_T;
                sign_dots_many(sign, n_i, q + t * q_stride, q_stride, act + t, n_step, n, out + t * ld, ld);
                break;
        }
    }
}

//
// factors
//

namespace {

// Returns the scale of a block in all lanes, without the way through a scalar register that the compiler would take.
inline __m512 block_scale(uint16_t d) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short) d));
}

struct f32x32 { // v0 has columns 0 to 15 of a step, v1 has 16 to 31.
    __m512 v0, v1;
};

struct avx512vnni { // The comment in factor-kernels.h describes it.
    using vectors                   = f32x32;
    using sums                      = __m512;
    static constexpr int STEP       = 32;
    static constexpr int MAX_T      = 3;
    static constexpr int PREFETCH_T = 2;

    static int           rows_at_once(int t, int n_t) { return ::rows_at_once(t, n_t); }
    static constexpr int rows_of_a(int /* T */) { return 8; }

    struct f32 {
        static constexpr int BYTES = 128;
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            const float * src = (const float *) row + j;
            return { _mm512_maskz_loadu_ps(columns_m16(0, n), src), _mm512_maskz_loadu_ps(columns_m16(16, n), src + 16) };
        }
    };

    struct f16 {
        static constexpr int BYTES = 64;
        static inline __m512 values_f32x16(const uint16_t * src, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, src)); }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint16_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint16_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    struct bf16 {
        static constexpr int BYTES = 64;
        static inline __m512 values_f32x16(const uint16_t * src, __mmask16 m) {
            const __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, src));
            return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint16_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint16_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    struct q8_0 {
        static constexpr int BYTES = sizeof(struct dqrelo_q8_0);
        static inline __m512 scaled(const struct dqrelo_q8_0 * block, const int8_t * q) {
            const __m512i q_i32x16 = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) q));
            return _mm512_mul_ps(block_scale(block->d), _mm512_cvtepi32_ps(q_i32x16));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q8_0 * block = (const struct dqrelo_q8_0 *) row + j / DQRELO_QK;
            return { scaled(block, block->qs), scaled(block, block->qs + 16) };
        }
    };

    struct q4_0 {
        static constexpr int BYTES = sizeof(struct dqrelo_q4_0);
        static inline f32x32 at(const void * row, int64_t j, int64_t /* n */) {
            const __m512               values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
            const struct dqrelo_q4_0 * block  = (const struct dqrelo_q4_0 *) row + j / DQRELO_QK;
            const __m512i              pairs  = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) block->qs));
            const __m512               d      = block_scale(block->d);
            // The permutation looks at the low 4 bits only, so the high nibbles need not be masked out.
            return { _mm512_mul_ps(d, _mm512_permutexvar_ps(pairs, values)),
                     _mm512_mul_ps(d, _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), values)) };
        }
    };

    struct f8 {
        static constexpr int BYTES = 32;
        static inline __m512 values_f32x16(const uint8_t * src, __mmask16 m) {
            return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(m, src)), 8));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint8_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint8_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    static inline void   hold(f32x32 & v) { __asm__("" : "+v"(v.v0), "+v"(v.v1)); }
    static inline __m512 zero() { return _mm512_setzero_ps(); }
    static inline void   add(__m512 & acc, const f32x32 & a, const f32x32 & b) {
        acc = _mm512_fmadd_ps(a.v0, b.v0, acc);
        acc = _mm512_fmadd_ps(a.v1, b.v1, acc);
    }

    static inline void store_totals(float * out, const __m512 (&four)[4], int n) {
        _mm_mask_storeu_ps(out, rows_m4(n), sums_f32x4(four[0], four[1], four[2], four[3]));
    }

    static constexpr int PRODUCTS_COLUMNS = 2048;
    static constexpr int PRODUCTS_R       = 8; // With 3 rows of b these are 24 sums, and 8 registers for what they are made of.
    static constexpr int PRODUCTS_T       = 3;

    static inline void add_totals(float * out, const __m512 (&four)[4], int n, bool add) {
        const __m128 so_far = _mm_maskz_loadu_ps(add ? rows_m4(n) : 0, out);
        _mm_mask_storeu_ps(out, rows_m4(n), _mm_add_ps(so_far, sums_f32x4(four[0], four[1], four[2], four[3])));
    }

    static constexpr int LANES = 16;

    static inline __m512 load_sums(const float * lanes) { return _mm512_loadu_ps(lanes); }

    // Returns 32 bits, zeros from bit n on; j and n are multiples of 8.
    static inline uint32_t bits_u32(const uint8_t * bits, int64_t j, int64_t n) {
        uint32_t word = 0;
        if (j + 32 <= n) {
            memcpy(&word, bits + j / 8, sizeof(word));
        } else {
            for (int64_t b = 0; j + 8 * b < n; b++) {
                word |= (uint32_t) bits[j / 8 + b] << (8 * b);
            }
        }
        return word;
    }
    static inline f32x32 expand(const float *& values, const uint8_t * bits, int64_t j, int64_t n) {
        const uint32_t word   = bits_u32(bits, j, n);
        const float *  second = values + __builtin_popcount(word & 0xffff);
        const f32x32   v      = { _mm512_maskz_expand_ps((__mmask16) word, _mm512_loadu_ps(values)),
                                  _mm512_maskz_expand_ps((__mmask16) (word >> 16), _mm512_loadu_ps(second)) };
        values += __builtin_popcount(word);
        return v;
    }

    static inline void store(float * out, const f32x32 & v, int64_t n) {
        _mm512_mask_storeu_ps(out, columns_m16(0, n), v.v0);
        _mm512_mask_storeu_ps(out + 16, columns_m16(16, n), v.v1);
    }
};

} // namespace

//
// sum of the parts
//

static void add_delta_avx512vnni(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts) {
    const __m512 d  = _mm512_set1_ps(parts->d);
    const __m512 dz = _mm512_set1_ps(parts->dz);
    const __m512 s  = _mm512_set1_ps(parts->s);
    for (int i = 0; i < n_i; i += 16) {
        const __mmask16 m     = columns_m16(i, n_i);
        __m512          delta = parts->uv ? _mm512_maskz_loadu_ps(m, parts->uv + i) : _mm512_setzero_ps();
        for (int p = 0; p < parts->n_planes; p++) {
            const __m512 scale = parts->scale_step[p] ? _mm512_maskz_loadu_ps(m, parts->scale[p] + i) : _mm512_set1_ps(parts->scale[p][0]);
            const __m512 sum   = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(m, parts->isum[p] + i));
            delta              = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), sum, delta);
        }
        if (parts->zsum) {
            delta = _mm512_fmadd_ps(dz, _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(m, parts->zsum + i)), delta);
        }
        _mm512_mask_storeu_ps(dst + i, m, _mm512_fmadd_ps(s, delta, _mm512_maskz_loadu_ps(m, y + i)));
    }
}

static void fold_signs_avx512vnni(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n) {
    const __m512 scale_f32x16 = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 m    = columns_m16(j, n);
        uint16_t        bits = sign[j / 8];
        bits                 = (uint16_t) (j + 8 < n ? bits | sign[j / 8 + 1] << 8 : bits);
        const __m512 value   = cscale ? _mm512_mul_ps(scale_f32x16, _mm512_maskz_loadu_ps(m, cscale + j)) : scale_f32x16;
        const __m512 old     = _mm512_maskz_loadu_ps(m, w + j);
        _mm512_mask_storeu_ps(w + j, m, _mm512_mask_add_ps(_mm512_sub_ps(old, value), (__mmask16) bits, old, value));
    }
}

static void expand_avx512vnni(const float * values, const uint8_t * bits, int64_t n, float * out) {
    for (int64_t j = 0; j < n; j += avx512vnni::STEP) {
        avx512vnni::store(out + j, avx512vnni::expand(values, bits, j, n), n - j);
    }
}

const struct dqrelo_kernels dqrelo_kernels_avx512vnni = {
    /*.name         =*/"avx512vnni",
    /*.quantize_row =*/quantize_row_avx512vnni,
    /*.sign_dots    =*/sign_dots_avx512vnni,
    /*.dots         =*/dots_of_isa<avx512vnni>,
    /*.add_delta    =*/add_delta_avx512vnni,
    /*.to_float     =*/to_float_of_isa<avx512vnni>,
    /*.fold_signs   =*/fold_signs_avx512vnni,
    /*.products     =*/products_of_isa<avx512vnni>,
    /*.count_bits   =*/count_bits,
    /*.expand       =*/expand_avx512vnni,
    /*.mask_products =*/mask_products_of_isa<avx512vnni>,
    /*.list_products =*/list_products_of_isa<avx512vnni>,
};
