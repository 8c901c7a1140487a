// avx512vnni-signs.cpp: quantised activations, and products with sign planes, for AVX-512 VNNI.
//
// With b = 1 where a sign bit is set, else 0,
//   sum_j s_j q_j = 2 P - sum_j q_j,   P = sum_j b_j q_j = 256 sum_j b_j hi_j + sum_j b_j lo_j
// and each of the two sums of P is one vpdpbusd for 64 columns (b are unsigned bytes, hi and lo signed ones; four products are added to
// each 32-bit lane). The b of a group of 512 columns come out of one vector of 64 bytes of signs, bit by bit:
//
//   byte of the signs        0          1          2         ...      63
//   (bytes >> k) & 1 is      b of k     b of 8+k   b of 16+k ...      b of 504+k
//
// which is why q is interleaved (kernels.h). On Zen 4 shift and AND run beside the two products, which are the limit there: 14.5 GB/s of
// signs a core. With a mask register for each 64 signs, and a masked move, it is 9.8. The columns behind the last whole group are taken so,
// 64 at a time: of q there are zeros up to a multiple of 64, so at the end of a row only the load of the last mask must stop.

#include "avx512vnni.h"
#include "prefetch.h"

#include <string.h>

static constexpr int64_t GROUP = 8 * DQRELO_Q_BLOCK;

// Returns the sums of the lanes of four vectors, in their order.
static inline __m128i sums_i32x4(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v0, v1), _mm512_unpackhi_epi32(v0, v1));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v2, v3), _mm512_unpackhi_epi32(v2, v3));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

//
// quantised activation
//

static inline __m512 scaled_f32x16(const float * x, const float * cscale, int64_t j, int64_t n) {
    const __mmask16 m = columns_m16(j, n);
    const __m512    v = _mm512_maskz_loadu_ps(m, x + j);
    return cscale ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, cscale + j)) : v;
}

// Writes the bytes of 64 columns, from column 64 c of a group on, to where the eight blocks of the group have them; `group` is the first
// block's byte of column 0.
static inline void deal_out(const int8_t * bytes, int64_t c, int8_t * group) {
    const __m512i v = _mm512_loadu_si512(bytes);
    UNROLLED
    for (int k = 0; k < 8; k++) {
        const __m128i of_block = _mm512_cvtepi64_epi8(_mm512_srli_epi64(v, (unsigned) (8 * k)));
        _mm_storel_epi64((__m128i *) (group + k * (2 * DQRELO_Q_BLOCK) + 8 * c), of_block);
    }
}

void quantize_row_avx512vnni(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act) {
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
    for (int64_t b = 0; b < dqrelo_q_bytes(n) / (2 * DQRELO_Q_BLOCK); b++) {
        alignas(64) int8_t dealt[2 * DQRELO_Q_BLOCK];
        const bool         is_dealt = b < n / GROUP * 8;
        int8_t *           block    = is_dealt ? dealt : q + b * (2 * DQRELO_Q_BLOCK);
        for (int64_t j = 0; j < DQRELO_Q_BLOCK; j += 16) {
            const __m512 x_f32x16 = scaled_f32x16(x, cscale, b * DQRELO_Q_BLOCK + j, n);
            __m512i      v        = _mm512_cvtps_epi32(_mm512_mul_ps(x_f32x16, inv_f32x16)); // This rounds to nearest even.
            v                     = _mm512_maskz_mov_epi32(finite ? 0xffff : 0, v);
            _mm_storeu_si128((__m128i *) (block + j), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(v, half), 8)));
            _mm_storeu_si128((__m128i *) (block + DQRELO_Q_BLOCK + j), _mm512_cvtepi32_epi8(v));
            sum_i32x16 = _mm512_add_epi32(sum_i32x16, v);
        }
        if (is_dealt) {
            int8_t * group = q + b / 8 * (16 * DQRELO_Q_BLOCK);
            deal_out(dealt, b % 8, group);
            deal_out(dealt + DQRELO_Q_BLOCK, b % 8, group + DQRELO_Q_BLOCK);
        }
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

namespace { // Methods of classes would be weak symbols outside of it.

// The quantised rows of one block of 64 columns.
template <int T>
struct q_block {
    __m512i hi[T], lo[T];

    q_block(const int8_t * q, int64_t q_stride) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            hi[t] = _mm512_loadu_si512(q + t * q_stride);
            lo[t] = _mm512_loadu_si512(q + t * q_stride + DQRELO_Q_BLOCK);
        }
    }
};

// Sums of products of R rows of signs with T rows of q.
template <int R, int T>
struct sign_sums {
    __m512i hi[R][T], lo[R][T];

    sign_sums() {
        UNROLLED
        for (int r = 0; r < R; r++) {
            UNROLLED
            for (int t = 0; t < T; t++) {
                hi[r][t] = lo[r][t] = _mm512_setzero_si512();
            }
        }
    }

    // Adds the products of row r's b in one block.
    inline __attribute__((always_inline)) void add(int r, __m512i b, const q_block<T> & q) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            dot_i32x16(hi[r][t], b, q.hi[t]);
            dot_i32x16(lo[r][t], b, q.lo[t]);
        }
    }

    // Stores (accumulate ? out : -sum q) + 2 P of all rows of signs, or the first n_i of them; R is a multiple of 4.
    inline void store(int n_i, const struct dqrelo_act * act, bool accumulate, int32_t * out, int64_t ld) const {
        UNROLLED
        for (int t = 0; t < T; t++) {
            UNROLLED
            for (int r = 0; r < R; r += 4) {
                const __m128i p     = sums_i32x4(p_of(r, t), p_of(r + 1, t), p_of(r + 2, t), p_of(r + 3, t));
                const __m128i begun = accumulate ? _mm_maskz_loadu_epi32(rows_m4(n_i - r), out + t * ld + r) : _mm_set1_epi32(-act[t].sum);
                _mm_mask_storeu_epi32(out + t * ld + r, rows_m4(n_i - r), _mm_add_epi32(begun, _mm_slli_epi32(p, 1)));
            }
        }
    }

private:
    inline __m512i p_of(int r, int t) const { return _mm512_add_epi32(_mm512_slli_epi32(hi[r][t], 8), lo[r][t]); }
};

} // namespace

// b of 64 columns that lie in order.
static inline __m512i b_of(__mmask64 signs) {
    return _mm512_maskz_mov_epi8(signs, _mm512_set1_epi8(1));
}

// One or two rows of q: memory is the limit, so each row of signs is read in one go, and what comes behind the tile is prefetched.
template <int R, int T>
static void sign_dots_few(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int64_t n,
                          int32_t * out, int64_t ld, struct dqrelo_ahead * after) {
    const __m512i       one   = _mm512_set1_epi8(1);
    struct dqrelo_ahead ahead = *after; // A copy may stay in registers.
    for (int i = 0; i < n_i; i += R) {
        const uint8_t * row[R]; // Behind the end the last row is taken again.
        for (int r = 0; r < R; r++) {
            row[r] = sign + (i + r < n_i ? i + r : n_i - 1) * (n / 8);
        }
        sign_sums<R, T> sums;
        uintptr_t       next = prefetch_from(row[0], (size_t) (R * (n / 8)), DQRELO_CACHE_1);
        for (int64_t g = 0; g < n / GROUP; g++) {
            __m512i bytes[R];
            UNROLLED
            for (int r = 0; r < R; r++) {
                bytes[r] = _mm512_loadu_si512(row[r] + g * (GROUP / 8));
            }
            for (int k = 0; k < 8; k++) {
                if (k < R) {
                    prefetch_lines<64, DQRELO_CACHE_1>(next);
                    next += 64;
                    prefetch_ahead(ahead);
                }
                const q_block<T> block(q + (8 * g + k) * (2 * DQRELO_Q_BLOCK), q_stride);
                UNROLLED
                for (int r = 0; r < R; r++) {
                    sums.add(r, _mm512_and_si512(bytes[r], one), block);
                    bytes[r] = _mm512_srli_epi16(bytes[r], 1);
                }
            }
        }
        for (int64_t b = n / GROUP * 8; b < (n + 63) / 64; b++, next += 64) {
            prefetch_lines<64, DQRELO_CACHE_1>(next);
            const q_block<T> block(q + b * (2 * DQRELO_Q_BLOCK), q_stride);
            __m512i          bits[R];
            UNROLLED
            for (int r = 0; r < R; r++) {
                bits[r] = b_of(signs_of_block(row[r], b, n));
            }
            UNROLLED
            for (int r = 0; r < R; r++) {
                sums.add(r, bits[r], block);
            }
        }
        sums.store(n_i - i, act, false, out + i, ld);
    }
    *after = ahead;
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
static constexpr int64_t SEGMENT_GROUPS = 4;

// The signs of a segment: bytes[i] are rows 4 i to 4 i + 3, group by group, with zeros behind the end of a row.
struct sign_segment {
    alignas(64) uint8_t bytes[MANY_ROWS / MANY_R][SEGMENT_GROUPS][MANY_R][GROUP / 8];
};

static void gather_signs(struct sign_segment * segment, const uint8_t * sign, int n_i, int64_t n, int64_t j0, int64_t j1) {
    for (int i = 0; i < (n_i + MANY_R - 1) / MANY_R * MANY_R; i++) {
        const uint8_t * row = sign + (i < n_i ? i : n_i - 1) * (n / 8); // Behind the end the last row is taken again.
        for (int64_t j = j0; j < j1; j += GROUP) {
            const int64_t   n_bytes = (j1 - j < GROUP ? j1 - j : GROUP) / 8;
            const __mmask64 there   = ~(__mmask64) 0 >> (64 - n_bytes);
            _mm512_store_si512(segment->bytes[i / MANY_R][(j - j0) / GROUP][i % MANY_R], _mm512_maskz_loadu_epi8(there, row + j / 8));
        }
    }
}

using many_sums = sign_sums<MANY_R, MANY_T>;

// Adds the products of the columns 8 l + K of a group.
template <int K>
static inline __attribute__((always_inline)) void add_block(many_sums & sums, const uint8_t (&bytes)[MANY_R][GROUP / 8], const int8_t * q,
                                                            int64_t q_stride) {
    const q_block<MANY_T> block(q + K * (2 * DQRELO_Q_BLOCK), q_stride);
    UNROLLED
    for (int r = 0; r < MANY_R; r++) {
        const __m512i signs = _mm512_srli_epi16(_mm512_load_si512(bytes[r]), K);
        sums.add(r, _mm512_and_si512(signs, _mm512_set1_epi8(1)), block);
    }
}

// Adds the products of a whole group.
static inline __attribute__((always_inline)) void add_group(many_sums & sums, const uint8_t (&bytes)[MANY_R][GROUP / 8], const int8_t * q,
                                                            int64_t q_stride) {
    add_block<0>(sums, bytes, q, q_stride);
    add_block<1>(sums, bytes, q, q_stride);
    add_block<2>(sums, bytes, q, q_stride);
    add_block<3>(sums, bytes, q, q_stride);
    add_block<4>(sums, bytes, q, q_stride);
    add_block<5>(sums, bytes, q, q_stride);
    add_block<6>(sums, bytes, q, q_stride);
    add_block<7>(sums, bytes, q, q_stride);
}

// Multiplies a segment of n columns with three rows of q. `ahead` is the q of the three rows after them: each four rows of signs prefetch a
// part of it.
static void sign_dots_segment(const struct sign_segment * segment, int n_i, const int8_t * q, int64_t q_stride,
                              const struct dqrelo_act * act, int64_t n, bool accumulate, int32_t * out, int64_t ld) {
    const int64_t n_blocks = (n + 63) / 64;
    for (int i = 0; i * MANY_R < n_i; i++) {
        const int8_t * ahead = q + (MANY_T + i / 2 % MANY_T) * q_stride + i % 2 * n_blocks * 64;
        const auto &   bytes = segment->bytes[i];
        many_sums      sums;
        for (int64_t g = 0; g < n / GROUP; g++) {
            prefetch_lines<8 * 64, DQRELO_CACHE_1>((uintptr_t) ahead + (uintptr_t) (g * 8 * 64));
            add_group(sums, bytes[g], q + g * (16 * DQRELO_Q_BLOCK), q_stride);
        }
        for (int64_t b = n / GROUP * 8; b < n_blocks; b++) {
            prefetch_lines<64, DQRELO_CACHE_1>((uintptr_t) ahead + (uintptr_t) (b * 64));
            const q_block<MANY_T> block(q + b * (2 * DQRELO_Q_BLOCK), q_stride);
            UNROLLED
            for (int r = 0; r < MANY_R; r++) {
                sums.add(r, b_of(next_signs(bytes[b / 8][r] + b % 8 * 8)), block);
            }
        }
        sums.store(n_i - i * MANY_R, act, accumulate, out + i * MANY_R, ld);
    }
}

// For numbers of rows of q, n_t, that are multiples of three.
static void sign_dots_many(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t,
                           int64_t n, int32_t * out, int64_t ld) {
    struct sign_segment segment;
    for (int i = 0; i < n_i; i += MANY_ROWS) {
        const int n_rows = n_i - i < MANY_ROWS ? n_i - i : MANY_ROWS;
        for (int64_t j0 = 0; j0 < n; j0 += SEGMENT_GROUPS * GROUP) {
            const int64_t j1 = j0 + SEGMENT_GROUPS * GROUP < n ? j0 + SEGMENT_GROUPS * GROUP : n;
            gather_signs(&segment, sign + i * (n / 8), n_rows, n, j0, j1);
            for (int t = 0; t < n_t; t += MANY_T) {
                sign_dots_segment(&segment, n_rows, q + t * q_stride + 2 * j0, q_stride, act + t, j1 - j0, j0 > 0, out + t * ld + i, ld);
            }
        }
    }
}

static void sign_dots_tile(const struct dqrelo_sign_tile & tile, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t,
                           int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    for (int t = 0, n_step; t < n_t; t += n_step) {
        int32_t * out = tile.out + t * ld;
        n_step        = rows_at_once(t, n_t);
        switch (n_step) {
            case 1: sign_dots_few<8, 1>(tile.sign, tile.n_i, q + t * q_stride, q_stride, act + t, n, out, ld, ahead); break;
            case 2: sign_dots_few<4, 2>(tile.sign, tile.n_i, q + t * q_stride, q_stride, act + t, n, out, ld, ahead); break;
            case 3:
                n_step = (n_t - t) / MANY_T * MANY_T;
                sign_dots_many(tile.sign, tile.n_i, q + t * q_stride, q_stride, act + t, n_step, n, out, ld);
                break;
        }
    }
}

void sign_dots_avx512vnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                          const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    for (int k = 0; k < n_tiles; k++) {
        sign_dots_tile(tiles[k], q, q_stride, act, n_t, n, ld, ahead);
    }
}
