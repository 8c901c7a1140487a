// avx512vbmi-signs.cpp: products of sign planes and several rows of q for AVX-512 VBMI, by tables of partial sums.
//
// Six signs are one of 64 patterns, and vpermb looks 64 of them up at once. So for each six columns of q there is a table of the 64 sums
//   T(pattern) = sum of |q_j| over the columns j whose sign in the pattern is that of q_j
// and, with M = sum_j max(0, -q_j),
//   sum_j s_j q_j = 2 (sum T - M) - sum_j q_j
// A sum has up to 18 bits, which are three digits of six, each in a table of its own; four digits fit into a byte. A look-up is made for 64
// rows of signs, features, at once, so their patterns are transposed before, once for all rows of q:
//
//                 48 bytes of signs                 64 features
//              +---------------------+             +-----------+
//   64 rows    | six bits, six bits, |   =>    64  |  bytes of |
//              +---------------------+    patterns |  a pattern|
//                                                  +-----------+
//
// To make a table takes as long as to look 180 features up in it, and to transpose as long as a look-up by one row of q. So this is for
// many features and some rows of q; for others the products of avx512vnni-signs.cpp are faster. Instructions for 1536 signs, 64 features
// and 24 columns, and a row of q, which those products take 72 for:
//
//   12   look-ups
//   18   additions and shifts
//   10   loads of tables, which two blocks of features share, and of patterns
//    4   to add the sums to those of the columns before

#include "avx512vnni.h"

static constexpr int GROUP_COLUMNS   = 6;
static constexpr int SEGMENT_GROUPS  = 64;
static constexpr int SEGMENT_COLUMNS = SEGMENT_GROUPS * GROUP_COLUMNS;
static constexpr int BLOCK           = 64; // features
static constexpr int SET             = 4;  // Blocks whose patterns stay in the first cache, 16 KiB.
static constexpr int DIGITS          = 3;

namespace {

// The patterns of a block's features, group by group.
struct pattern_block {
    alignas(64) uint8_t group[SEGMENT_GROUPS][BLOCK];
};

// The tables of a segment of a row of q.
struct table_segment {
    alignas(64) uint8_t digit[SEGMENT_GROUPS][DIGITS][64];
    int32_t negative; // M of the segment

    void make(const int8_t * q, int64_t j0, int64_t n, int n_groups);
};

} // namespace

static inline int smaller(int a, int b) {
    return a < b ? a : b;
}

//
// patterns
//

// Returns the patterns of a row's next n_bytes, at most 48, those of a segment. The upper two bits of a byte are those of the next pattern;
// vpermb does not look at them.
static inline __m512i patterns_of(const uint8_t * sign, int64_t n_bytes) {
    // Six bytes are eight patterns: they are put into eight bytes, out of which each takes its own.
    alignas(64) static const uint8_t spread[64] = {
        0,  1,  2,  3,  4,  5,  0, 0, 6,  7,  8,  9,  10, 11, 0, 0, 12, 13, 14, 15, 16, 17, 0, 0, 18, 19, 20, 21, 22, 23, 0, 0,
        24, 25, 26, 27, 28, 29, 0, 0, 30, 31, 32, 33, 34, 35, 0, 0, 36, 37, 38, 39, 40, 41, 0, 0, 42, 43, 44, 45, 46, 47, 0, 0,
    };
    const __m512i bytes  = _mm512_maskz_loadu_epi8(first_m64(n_bytes), sign);
    const __m512i eights = _mm512_permutexvar_epi8(_mm512_load_si512(spread), bytes);
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2a241e18120c0600), eights); // from bit 0, 6, ..., 42 on
}

// Transposes the patterns of 16 rows: four times the bytes of rows k and k + 8 are interleaved, in each lane of 16.
static inline void transpose_lanes(__m512i (&rows)[16]) {
    UNROLLED
    for (int step = 0; step < 4; step++) {
        __m512i next[16];
        UNROLLED
        for (int k = 0; k < 8; k++) {
            next[2 * k]     = _mm512_unpacklo_epi8(rows[k], rows[k + 8]);
            next[2 * k + 1] = _mm512_unpackhi_epi8(rows[k], rows[k + 8]);
        }
        UNROLLED_16
        for (int k = 0; k < 16; k++) {
            rows[k] = next[k];
        }
    }
}

static void make_patterns(pattern_block & to, const uint8_t * sign, int n_i, int64_t row_bytes, int64_t n_bytes) {
    for (int i0 = 0; i0 < BLOCK; i0 += 16) {
        __m512i rows[16]; // Behind the end the last row is taken again.
        UNROLLED_16
        for (int i = 0; i < 16; i++) {
            rows[i] = patterns_of(sign + smaller(i0 + i, n_i - 1) * row_bytes, n_bytes);
        }
        transpose_lanes(rows);
        UNROLLED_16
        for (int k = 0; k < 16; k++) {
            _mm_store_si128((__m128i *) (to.group[k] + i0), _mm512_castsi512_si128(rows[k]));
            _mm_store_si128((__m128i *) (to.group[16 + k] + i0), _mm512_extracti32x4_epi32(rows[k], 1));
            _mm_store_si128((__m128i *) (to.group[32 + k] + i0), _mm512_extracti32x4_epi32(rows[k], 2));
            _mm_store_si128((__m128i *) (to.group[48 + k] + i0), _mm512_extracti32x4_epi32(rows[k], 3));
        }
    }
}

//
// tables
//

// Sets `to` to q of a segment's columns, zeros behind the end, and returns M.
static int32_t read_segment(const int8_t * q, int64_t j0, int64_t n, int32_t * to) {
    __m512i negative = _mm512_setzero_si512();
    for (int64_t j = 0; j < SEGMENT_COLUMNS; j += DQRELO_Q_BLOCK) {
        alignas(64) int8_t hi[DQRELO_Q_BLOCK] = {}, lo[DQRELO_Q_BLOCK] = {};
        if (j0 + j < n) {
            const int8_t * block = q + 2 * (j0 + j);
            _mm512_store_si512(hi, interleave_q(_mm512_loadu_si512(block)));
            _mm512_store_si512(lo, interleave_q(_mm512_loadu_si512(block + DQRELO_Q_BLOCK)));
        }
        for (int64_t k = 0; k < DQRELO_Q_BLOCK; k += 16) {
            const __m512i upper = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *) (hi + k))), 8);
            const __m512i v     = _mm512_add_epi32(upper, _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *) (lo + k))));
            _mm512_store_si512(to + j + k, v);
            negative = _mm512_sub_epi32(negative, _mm512_min_epi32(v, _mm512_setzero_si512()));
        }
    }
    return _mm512_reduce_add_epi32(negative);
}

// Returns the digits of 16 sums: bytes 0, 1 and 2 of each lane.
static inline __m512i digits_of(__m512i sums) {
    const __m512i from = _mm512_set1_epi64(0x002c2620000c0600); // bits 0, 6 and 12 of both lanes of 64 bits
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(from, sums), _mm512_set1_epi8(63));
}

// Makes the tables of six columns. Lane l of the sums has the pattern whose lower four bits are l; the upper two are the vector's.
static inline void make_group(uint8_t (&digit)[DIGITS][64], const int32_t * q) {
    int32_t start = 0;
    for (int k = 0; k < GROUP_COLUMNS; k++) {
        start -= smaller(q[k], 0);
    }
    __m512i sums[4];
    sums[0] = _mm512_set1_epi32(start);
    sums[0] = _mm512_mask_add_epi32(sums[0], 0xaaaa, sums[0], _mm512_set1_epi32(q[0]));
    sums[0] = _mm512_mask_add_epi32(sums[0], 0xcccc, sums[0], _mm512_set1_epi32(q[1]));
    sums[0] = _mm512_mask_add_epi32(sums[0], 0xf0f0, sums[0], _mm512_set1_epi32(q[2]));
    sums[0] = _mm512_mask_add_epi32(sums[0], 0xff00, sums[0], _mm512_set1_epi32(q[3]));
    sums[1] = _mm512_add_epi32(sums[0], _mm512_set1_epi32(q[4]));
    sums[2] = _mm512_add_epi32(sums[0], _mm512_set1_epi32(q[5]));
    sums[3] = _mm512_add_epi32(sums[1], _mm512_set1_epi32(q[5]));

    // Byte 4 l of the first vector for l = 0 to 15, then of the second one: the lowest digits. Byte 4 l + 1 for the next ones, behind them.
    const __m512i lower = _mm512_set_epi8(125, 121, 117, 113, 109, 105, 101, 97, 93, 89, 85, 81, 77, 73, 69, 65, 61, 57, 53, 49, 45, 41, 37,
                                          33, 29, 25, 21, 17, 13, 9, 5, 1, 124, 120, 116, 112, 108, 104, 100, 96, 92, 88, 84, 80, 76, 72,
                                          68, 64, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i upper = _mm512_add_epi8(lower, _mm512_set1_epi8(2));
    const __m512i d0 = digits_of(sums[0]), d1 = digits_of(sums[1]), d2 = digits_of(sums[2]), d3 = digits_of(sums[3]);
    const __m512i lower01 = _mm512_permutex2var_epi8(d0, lower, d1), lower23 = _mm512_permutex2var_epi8(d2, lower, d3);
    const __m512i upper01 = _mm512_permutex2var_epi8(d0, upper, d1), upper23 = _mm512_permutex2var_epi8(d2, upper, d3);
    _mm512_store_si512(digit[0], _mm512_inserti64x4(lower01, _mm512_castsi512_si256(lower23), 1));
    _mm512_store_si512(digit[1], _mm512_shuffle_i64x2(lower01, lower23, 0xee));
    _mm512_store_si512(digit[2], _mm512_inserti64x4(upper01, _mm512_castsi512_si256(upper23), 1));
}

void table_segment::make(const int8_t * q, int64_t j0, int64_t n, int n_groups) {
    alignas(64) int32_t values[SEGMENT_COLUMNS];
    negative = read_segment(q, j0, n, values);
    for (int g = 0; g < n_groups; g++) {
        make_group(digit[g], values + g * GROUP_COLUMNS);
    }
}

//
// look-ups
//

namespace {

// Sums of the digits of a block's features: of the even ones plus 256 times the odd ones, modulo 2^16, and of the odd ones. A segment's
// have at most 64 * 63.
struct block_sums {
    __m512i both[DIGITS], odd[DIGITS];
};

} // namespace

// Returns 32-bit sums out of half of the 16-bit ones of their digits, in each lane the lower or the upper half.
template <bool UPPER>
static inline __m512i value_of(const __m512i (&digit)[DIGITS]) {
    const __m512i zero  = _mm512_setzero_si512();
    const __m512i pairs = UPPER ? _mm512_unpackhi_epi16(digit[0], digit[1]) : _mm512_unpacklo_epi16(digit[0], digit[1]);
    const __m512i third = UPPER ? _mm512_unpackhi_epi16(digit[2], zero) : _mm512_unpacklo_epi16(digit[2], zero);
    return _mm512_add_epi32(_mm512_madd_epi16(pairs, _mm512_set1_epi32(64 << 16 | 1)), _mm512_slli_epi32(third, 12));
}

// Sets out[i] to first + 2 T of the block's first n_i features, or adds that to it.
static inline void store_block(const block_sums & sums, int n_i, int32_t first, bool add, int32_t * out) {
    __m512i even[DIGITS];
    UNROLLED
    for (int d = 0; d < DIGITS; d++) {
        even[d] = _mm512_sub_epi16(sums.both[d], _mm512_slli_epi16(sums.odd[d], 8));
    }
    // Lane k of these has features 16 k + 0, 2, 4, 6, then + 8, 10, 12, 14, and the same + 1.
    const __m512i even0 = value_of<false>(even), even1 = value_of<true>(even);
    const __m512i odd0 = value_of<false>(sums.odd), odd1 = value_of<true>(sums.odd);
    // Lane k of these has features 16 k + 4 m to 16 k + 4 m + 3, m = 0 to 3.
    const __m512i m0 = _mm512_unpacklo_epi32(even0, odd0), m1 = _mm512_unpackhi_epi32(even0, odd0);
    const __m512i m2 = _mm512_unpacklo_epi32(even1, odd1), m3 = _mm512_unpackhi_epi32(even1, odd1);
    const __m512i a0 = _mm512_shuffle_i32x4(m0, m1, 0x44), a1 = _mm512_shuffle_i32x4(m0, m1, 0xee);
    const __m512i b0 = _mm512_shuffle_i32x4(m2, m3, 0x44), b1 = _mm512_shuffle_i32x4(m2, m3, 0xee);
    const __m512i values[4] = { _mm512_shuffle_i32x4(a0, b0, 0x88), _mm512_shuffle_i32x4(a0, b0, 0xdd), _mm512_shuffle_i32x4(a1, b1, 0x88),
                                _mm512_shuffle_i32x4(a1, b1, 0xdd) };
    UNROLLED
    for (int k = 0; k < 4; k++) {
        const __mmask16 there = columns_m16(16 * k, n_i);
        const __m512i   begun = add ? _mm512_maskz_loadu_epi32(there, out + 16 * k) : _mm512_setzero_si512();
        const __m512i   value = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_slli_epi32(values[k], 1));
        _mm512_mask_storeu_epi32(out + 16 * k, there, _mm512_add_epi32(begun, value));
    }
}

// Looks the patterns of N blocks up, n_groups of them, a multiple of four, and stores what that gives for n_i features.
template <int N>
static void look_up(const pattern_block * patterns, const table_segment & tables, int n_groups, int n_i, int32_t first, bool add,
                    int32_t * out) {
    block_sums sums[N];
    UNROLLED
    for (int b = 0; b < N; b++) {
        UNROLLED
        for (int d = 0; d < DIGITS; d++) {
            sums[b].both[d] = sums[b].odd[d] = _mm512_setzero_si512();
        }
    }
    for (int g = 0; g < n_groups; g += 4) {
        __m512i four[N][DIGITS];
        UNROLLED
        for (int k = 0; k < 4; k++) {
            __m512i table[DIGITS];
            UNROLLED
            for (int d = 0; d < DIGITS; d++) {
                table[d] = _mm512_load_si512(tables.digit[g + k][d]);
                __asm__("" : "+v"(table[d])); // The compiler would load it for each block.
            }
            UNROLLED
            for (int b = 0; b < N; b++) {
                const __m512i pattern = _mm512_load_si512(patterns[b].group[g + k]);
                UNROLLED
                for (int d = 0; d < DIGITS; d++) {
                    const __m512i found = _mm512_permutexvar_epi8(pattern, table[d]);
                    four[b][d]          = k == 0 ? found : _mm512_add_epi8(four[b][d], found);
                }
            }
        }
        UNROLLED
        for (int b = 0; b < N; b++) {
            UNROLLED
            for (int d = 0; d < DIGITS; d++) {
                sums[b].both[d] = _mm512_add_epi16(sums[b].both[d], four[b][d]);
                sums[b].odd[d]  = _mm512_add_epi16(sums[b].odd[d], _mm512_srli_epi16(four[b][d], 8));
            }
        }
    }
    UNROLLED
    for (int b = 0; b < N; b++) {
        store_block(sums[b], n_i - b * BLOCK, first, add, out + b * BLOCK);
    }
}

// For up to TABLE_ROWS rows of q.
static void multiply_rows(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                          const struct dqrelo_act * act, int t0, int n_t, int64_t n, int64_t ld) {
    pattern_block patterns[SET];
    table_segment tables[TABLE_ROWS];
    for (int64_t j0 = 0; j0 < n; j0 += SEGMENT_COLUMNS) {
        const int64_t n_columns = n - j0 < SEGMENT_COLUMNS ? n - j0 : SEGMENT_COLUMNS;
        const int     n_groups  = (int) (n_columns + 4 * GROUP_COLUMNS - 1) / (4 * GROUP_COLUMNS) * 4;
        for (int t = 0; t < n_t; t++) {
            tables[t].make(q + (t0 + t) * q_stride, j0, n, n_groups);
        }
        for (int k = 0; k < n_tiles; k++) {
            for (int i = 0; i < tiles[k].n_i; i += SET * BLOCK) {
                const uint8_t * sign = tiles[k].sign + i * (n / 8) + j0 / 8;
                const int       n_i  = smaller(SET * BLOCK, tiles[k].n_i - i);
                for (int b = 0; b * BLOCK < n_i; b++) {
                    make_patterns(patterns[b], sign + b * BLOCK * (n / 8), n_i - b * BLOCK, n / 8, n_columns / 8);
                }
                for (int t = 0; t < n_t; t++) {
                    const int32_t first = -2 * tables[t].negative - (j0 == 0 ? act[t0 + t].sum : 0);
                    int32_t *     out   = tiles[k].out + (t0 + t) * ld + i;
                    for (int b = 0; b * BLOCK < n_i; b += 2) {
                        if (n_i - b * BLOCK > BLOCK) {
                            look_up<2>(patterns + b, tables[t], n_groups, n_i - b * BLOCK, first, j0 > 0, out + b * BLOCK);
                        } else {
                            look_up<1>(patterns + b, tables[t], n_groups, n_i - b * BLOCK, first, j0 > 0, out + b * BLOCK);
                        }
                    }
                }
            }
        }
    }
}

void sign_dots_avx512vbmi(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                          const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld) {
    for (int t = 0; t < n_t; t += TABLE_ROWS) {
        multiply_rows(tiles, n_tiles, q, q_stride, act, t, smaller(TABLE_ROWS, n_t - t), n, ld);
    }
}
