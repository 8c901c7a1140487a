// avx512vnni-signs.cpp: quantised activations, and products with sign planes, for AVX-512 VNNI.
//
// With b = 1 where a sign bit is set, else 0,
//   sum_j s_j q_j = 2 P - sum_j q_j,   P = sum_j b_j q_j = 256 sum_j b_j hi_j + sum_j b_j lo_j
// and each of the two sums of P is one vpdpbusd for 64 columns (b are unsigned bytes, hi and lo signed ones; four products are added to
// each 32-bit lane). The eight bytes of their signs are broadcast to eight lanes, of which lane k keeps bit k of each byte. It stays where
// it is, so these are 2^k b, and the sums of a lane are 2^k times too large until they are stored:
//
//   byte of the vector       0          1          2         ...      8          9         ...      63
//   b of column              0          8          16        ...      1          9         ...      63
//
// which is why q is interleaved (kernels.h). A row of signs then takes three instructions for 64 columns, an AND with a broadcast from
// memory and two products, which are the limit on Zen 4, one a cycle: 14.8 GB/s of signs a core. With a mask register for each 64 signs,
// and a masked move, it is 9.8. Behind the end of a row q is zero, so whatever b is there is left out.

#include "avx512vnni.h"
#include "prefetch.h"

#include <string.h>

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
    act->tables             = nullptr;
    act->d                  = !finite ? dqrelo_f32_from_bits(0x7fc00000) : zero ? 0.0f : v_max / q_max;

    const __m512i half       = _mm512_set1_epi32(128);
    __m512i       sum_i32x16 = _mm512_setzero_si512();
    for (int64_t b = 0; b < dqrelo_q_bytes(n) / (2 * DQRELO_Q_BLOCK); b++) {
        alignas(64) int8_t hi[DQRELO_Q_BLOCK], lo[DQRELO_Q_BLOCK];
        for (int64_t j = 0; j < DQRELO_Q_BLOCK; j += 16) {
            const __m512 x_f32x16 = scaled_f32x16(x, cscale, b * DQRELO_Q_BLOCK + j, n);
            __m512i      v        = _mm512_cvtps_epi32(_mm512_mul_ps(x_f32x16, inv_f32x16)); // This rounds to nearest even.
            v                     = _mm512_maskz_mov_epi32(finite ? 0xffff : 0, v);
            _mm_store_si128((__m128i *) (hi + j), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(v, half), 8)));
            _mm_store_si128((__m128i *) (lo + j), _mm512_cvtepi32_epi8(v));
            sum_i32x16 = _mm512_add_epi32(sum_i32x16, v);
        }
        int8_t * block = q + b * (2 * DQRELO_Q_BLOCK);
        _mm512_storeu_si512(block, interleave_q(_mm512_load_si512(hi)));
        _mm512_storeu_si512(block + DQRELO_Q_BLOCK, interleave_q(_mm512_load_si512(lo)));
    }
    act->sum = _mm512_reduce_add_epi32(sum_i32x16);
}

//
// sign planes
//

// Returns 2^k b of 64 columns from their signs, which are in all lanes k.
static inline __m512i b_of(__m512i signs) {
    const __m512i kept = _mm512_sllv_epi64(_mm512_set1_epi8(1), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm512_and_si512(signs, kept);
}

static inline __m512i b_of_block(const uint8_t * sign) {
    long long bits;
    memcpy(&bits, sign, sizeof(bits));
    return b_of(_mm512_set1_epi64(bits));
}

// The same of a row's last n_bytes < 8 bytes.
static inline __m512i b_of_last(const uint8_t * sign, int64_t n_bytes) {
    return b_of(_mm512_broadcastq_epi64(_mm_maskz_loadu_epi8((__mmask16) ((1u << n_bytes) - 1), sign)));
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

// A lane's lo of so many columns, 2^7 b lo, is below 2^30.
constexpr int64_t SUM_COLUMNS = 1 << 20;

// Sums of products of R rows of signs with T rows of q, over at most SUM_COLUMNS columns.
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
    // Undoes the 2^k. Of hi only what is left of it modulo 2^32 is needed, but lo must have fitted.
    inline __m512i p_of(int r, int t) const {
        const __m512i k = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        return _mm512_add_epi32(_mm512_sllv_epi32(hi[r][t], _mm512_sub_epi32(_mm512_set1_epi32(8), k)), _mm512_srav_epi32(lo[r][t], k));
    }
};

} // namespace

// One or two rows of q: memory is the limit, so each row of signs is read in one go, and what is read next is asked for. Returns what is to
// be asked for afterwards.
template <int R, int T>
static sign_requests sign_dots_few(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                                   int64_t n, int32_t * out, int64_t ld, sign_requests signs, struct dqrelo_ahead * after) {
    struct dqrelo_ahead ahead = *after; // A copy may stay in registers.
    for (int i = 0; i < n_i; i += R) {
        const uint8_t * row[R]; // Behind the end the last row is taken again.
        row[0] = sign + i * (n / 8);
        for (int r = 1; r < R; r++) {
            row[r] = row[r - 1] + (i + r < n_i ? n / 8 : 0);
        }
        sign_sums<R, T> sums;
        for (int64_t b = 0; b < n / 64; b++) {
            if (b % (8 / R) == 0) { // R rows of so many blocks are a cache line.
                signs.ask<DQRELO_CACHE_1>();
                prefetch_ahead(ahead);
            }
            const q_block<T> block(q + b * (2 * DQRELO_Q_BLOCK), q_stride);
            UNROLLED
            for (int r = 0; r < R; r++) {
                sums.add(r, b_of_block(row[r] + 8 * b), block);
            }
        }
        if (n % 64 > 0) {
            const int64_t    b = n / 64;
            const q_block<T> block(q + b * (2 * DQRELO_Q_BLOCK), q_stride);
            signs.ask<DQRELO_CACHE_1>();
            UNROLLED
            for (int r = 0; r < R; r++) {
                sums.add(r, b_of_last(row[r] + 8 * b, n % 64 / 8), block);
            }
        }
        sums.store(n_i - i, act, false, out + i, ld);
    }
    *after = ahead;
    return signs;
}

//
// many rows of q
//
// Arithmetic is the limit, so what is used again must stay in the first cache: a segment of 2048 columns of 64 rows of signs, 16 KiB, and
// the same segment of three rows of q, 12 KiB. The signs are gathered into one place, because the distance of their rows may be a power of
// two, and they would then compete for a few sets of that cache.
//

static constexpr int     MANY_R    = 4;
static constexpr int     MANY_T    = 3; // The sums take 2 * 4 * 3 of the 32 registers.
static constexpr int     MANY_ROWS = 64;
static constexpr int64_t SEGMENT   = 2048;

// Returns the mask of the first n of 64 bytes; n may be larger.
static inline __mmask64 first_m64(int64_t n) {
    return n >= 64 ? ~(__mmask64) 0 : ((__mmask64) 1 << n) - 1;
}

// The signs of a segment, with zeros up to a multiple of 512 columns.
struct sign_segment {
    alignas(64) uint8_t row[MANY_ROWS][SEGMENT / 8];
};

static void gather_signs(struct sign_segment * segment, const uint8_t * sign, int n_i, int64_t n, int64_t j0, int64_t j1) {
    for (int i = 0; i < (n_i + MANY_R - 1) / MANY_R * MANY_R; i++) {
        const uint8_t * row = sign + (i < n_i ? i : n_i - 1) * (n / 8); // Behind the end the last row is taken again.
        for (int64_t j = j0; j < j1; j += 512) {
            _mm512_store_si512(segment->row[i] + (j - j0) / 8, _mm512_maskz_loadu_epi8(first_m64((j1 - j) / 8), row + j / 8));
        }
    }
}

// Multiplies a segment of n columns with T rows of q. `ahead` is the q of the T rows after them: each four rows of signs prefetch a part of
// it.
template <int T>
static void sign_dots_segment(const struct sign_segment * segment, int n_i, const int8_t * q, int64_t q_stride,
                              const struct dqrelo_act * act, int64_t n, bool accumulate, int32_t * out, int64_t ld) {
    const int64_t n_blocks = (n + 63) / 64;
    for (int i = 0; i < n_i; i += MANY_R) {
        const int8_t *       ahead = q + (T + i / MANY_R / 2 % T) * q_stride + i / MANY_R % 2 * n_blocks * 64;
        sign_sums<MANY_R, T> sums;
        for (int64_t b = 0; b < n_blocks; b++) {
            prefetch_lines<64, DQRELO_CACHE_1>((uintptr_t) ahead + (uintptr_t) (b * 64));
            const q_block<T> block(q + b * (2 * DQRELO_Q_BLOCK), q_stride);
            UNROLLED
            for (int r = 0; r < MANY_R; r++) {
                sums.add(r, b_of_block(segment->row[i + r] + 8 * b), block);
            }
        }
        sums.store(n_i - i, act, accumulate, out + i, ld);
    }
}

// For numbers of rows of q, n_t, that are multiples of T.
template <int T>
static void sign_dots_many(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act, int n_t,
                           int64_t n, int32_t * out, int64_t ld) {
    struct sign_segment segment;
    for (int i = 0; i < n_i; i += MANY_ROWS) {
        const int n_rows = n_i - i < MANY_ROWS ? n_i - i : MANY_ROWS;
        for (int64_t j0 = 0; j0 < n; j0 += SEGMENT) {
            const int64_t j1 = j0 + SEGMENT < n ? j0 + SEGMENT : n;
            gather_signs(&segment, sign + i * (n / 8), n_rows, n, j0, j1);
            for (int t = 0; t < n_t; t += T) {
                sign_dots_segment<T>(&segment, n_rows, q + t * q_stride + 2 * j0, q_stride, act + t, j1 - j0, j0 > 0, out + t * ld + i, ld);
            }
        }
    }
}

// Multiplies rows of q from t0 on. Returns what is to be asked for behind the tile. Rows of q after the first find it in a cache, and ask
// for the same again.
static sign_requests sign_dots_tile(const struct dqrelo_sign_tile & tile, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                                    int t0, int n_t, int64_t n, int64_t ld, const sign_requests & begin, struct dqrelo_ahead * ahead) {
    if (n > SUM_COLUMNS) { // No tables have room for so many, so t0 is 0.
        sign_dots_many<1>(tile.sign, tile.n_i, q, q_stride, act, n_t, n, tile.out, ld);
        return begin;
    }
    sign_requests end = begin;
    for (int t = t0, n_step; t < n_t; t += n_step) {
        const int8_t *            q_t   = q + t * q_stride;
        const struct dqrelo_act * act_t = act + t;
        int32_t *                 out   = tile.out + t * ld;
        n_step                          = rows_at_once(t, n_t);
        switch (n_step) {
            case 1: end = sign_dots_few<8, 1>(tile.sign, tile.n_i, q_t, q_stride, act_t, n, out, ld, begin, ahead); break;
            case 2: end = sign_dots_few<4, 2>(tile.sign, tile.n_i, q_t, q_stride, act_t, n, out, ld, begin, ahead); break;
            case 3:
                n_step = (n_t - t) / MANY_T * MANY_T;
                sign_dots_many<MANY_T>(tile.sign, tile.n_i, q_t, q_stride, act_t, n_step, n, out, ld);
                break;
        }
    }
    return end;
}

// So many features pay for the tables of avx512vbmi-signs.cpp.
static constexpr int MIN_TABLE_FEATURES = 128;

static bool has_vbmi() {
    static const bool has = __builtin_cpu_supports("avx512vbmi");
    return has;
}

int64_t tables_bytes_avx512vnni(int64_t n) {
    return has_vbmi() ? tables_bytes_avx512vbmi(n) : 0;
}

void make_tables_avx512vnni(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act) {
    if (has_vbmi()) {
        make_tables_avx512vbmi(q, n, tables, act);
    }
}

// Returns whether tables are made for these features.
static bool takes_tables(const struct dqrelo_sign_tile * tiles, int n_tiles) {
    int n_i = 0;
    for (int k = 0; k < n_tiles; k++) {
        n_i += tiles[k].n_i;
    }
    return has_vbmi() && n_i >= MIN_TABLE_FEATURES;
}

void sign_dots_avx512vnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                          const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    const int t0 =
        act->tables || takes_tables(tiles, n_tiles) ? sign_dots_avx512vbmi(tiles, n_tiles, q, q_stride, act, n_t, n, ld, ahead) : 0;
    if (t0 == n_t) {
        return;
    }
    sign_requests signs(tiles, n_tiles, n / 8);
    signs.skip(prefetch_bytes(DQRELO_CACHE_1));
    for (int k = 0; k < n_tiles; k++) {
        signs = sign_dots_tile(tiles[k], q, q_stride, act, t0, n_t, n, ld, signs, ahead);
    }
}
