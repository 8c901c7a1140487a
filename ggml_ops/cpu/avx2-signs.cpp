// avx2-signs.cpp: products with sign planes for AVX2, by tables of partial sums.
//
// sum_j s_j q_j = 2 sum_{j: s_j q_j > 0} |q_j| - sum_j |q_j|. For four columns, a nibble of signs, the first sum has 16 possible values,
// which are put into a table once; vpshufb then looks up the nibbles of 16 rows of signs in each of its halves. A value has 17 bits and a
// table bytes, so there are three tables: each half of a value, of two columns, is below 2^16 and is cut into digits of 6, 5 and 5 bits,
// and the digits of both halves are added without a carry. They are at most 126, 62 and 62, so 2, 4 and 4 of them are added in a byte
// before they are widened to 16 bits, where those of 4096 columns fit. Widening is three instructions: all bytes are added as they lie,
// v = even + 256 odd, and v >> 8 is added to a second sum; the even ones are what is left of the first.
//
// The signs of 16 rows are transposed for this, once for all rows of q. Instructions for 256 signs and a row of q, counted in GCC 12's
// code:
//
//   20.5         look-ups: 6 vpshufb, 8 additions, 1.5 shifts and 0.5 loads, prefetches and loops
//   11.6 / T     to transpose and split, for T rows of q
//   984 / R      to make tables for R rows of signs
//    0.3         to store the sums
//
// With tiles of 256 rows of signs that is 36 for one row of q and 26 for eight. Bytes of 0 and 1 in the place of signs, multiplied by
// vpmaddubsw, took 42 for one row and 43 for three and more. AVX-VNNI would take 26 for one row, and 16 of them are vpdpbusd, of which a
// core does two a cycle: docs/operator.md has the times.

#include "avx2.h"
#include "prefetch.h"

#include <string.h>

static constexpr int64_t CHUNK_COLUMNS = 256;
static constexpr int     STEPS         = 32; // of a chunk
static constexpr int     UNIT_CHUNKS   = 2;
static constexpr int     SUM_CHUNKS    = 16; // So many chunks fit in 16-bit sums.
static constexpr int     MAX_T         = 8;  // rows of q at once
static constexpr int     GROUPS        = 4;
static constexpr int     BLOCK_ROWS    = 16 * GROUPS;
static constexpr int     MAX_BLOCKS    = 4;

// A chunk of columns is 32 bytes of signs of a row, a unit is a cache line. Rows of signs are taken in blocks of 64, four groups of 16, and
// blocks in tiles, which is why DQRELO_TILE_I is 256.

// The tables of a chunk. Step 2 c + h has those of nibble h of byte c in its low half, of byte 16 + c in its high half.
struct chunk_tables {
    __m256i digit[3][STEPS];
};

// The nibbles of 64 rows of signs; those of rows 16 g to 16 g + 15 are at [step][g].
struct unit_nibbles {
    __m256i at[UNIT_CHUNKS * STEPS][GROUPS];
};

// Sums of one digit in 16-bit lanes: of odd rows, and even rows + 256 odd rows.
struct digit_sums {
    __m256i both[GROUPS];
    __m256i odd[GROUPS];
};

struct workspace {
    chunk_tables tables[SUM_CHUNKS]; // of a segment of columns, row by row of q
    unit_nibbles nibbles;
    digit_sums   sums[MAX_T][MAX_BLOCKS][3];
    int32_t      magnitude[MAX_T]; // sums of |q_j|
    uintptr_t    next;             // what to ask memory for, in steps of `step` bytes: signs,
    uintptr_t    step;
    uintptr_t    ahead; // and what is read after them, a line at a time up to `ahead_end`
    uintptr_t    ahead_end;
};

//
// tables
//

// Sets digit[k] to the three digits of the partial sums of pairs of columns. q are 16-bit values, of which two neighbours are a pair. A
// pair makes four bytes, for the signs (first, second) = 00, 01, 10 and 11.
static inline void pair_digits(__m256i (&digit)[3], __m256i q) {
    const __m256i second =
        _mm256_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15);
    const __m256i zero  = _mm256_setzero_si256();
    const __m256i minus = _mm256_max_epi16(_mm256_sub_epi16(zero, q), zero);
    const __m256i plus  = _mm256_max_epi16(q, zero);
    const __m256i first = _mm256_blend_epi16(minus, _mm256_slli_epi32(plus, 16), 0xaa);
    const __m256i x0    = _mm256_add_epi16(first, _mm256_shuffle_epi8(minus, second)); // 00 and 10
    const __m256i x1    = _mm256_add_epi16(first, _mm256_shuffle_epi8(plus, second));  // 01 and 11
    const __m256i low5 = _mm256_set1_epi16(0x001f), high5 = _mm256_set1_epi16(0x1f00);
    digit[0] = _mm256_or_si256(_mm256_and_si256(x0, _mm256_set1_epi16(0x003f)),
                               _mm256_and_si256(_mm256_slli_epi16(x1, 8), _mm256_set1_epi16(0x3f00)));
    digit[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(x0, 6), low5), _mm256_and_si256(_mm256_slli_epi16(x1, 2), high5));
    digit[2] = _mm256_or_si256(_mm256_srli_epi16(x0, 11), _mm256_and_si256(_mm256_srli_epi16(x1, 3), high5));
}

// Returns for each of the 16 nibbles the byte of the pair at `pair` that it selects with its bits `bit` and `bit` + 1.
template <int pair, int bit>
static inline __m256i bytes_of_nibble() {
    alignas(16) int8_t byte[16];
    for (int e = 0; e < 16; e++) {
        byte[e] = (int8_t) (4 * pair + (e >> bit & 1) * 2 + (e >> bit >> 1 & 1));
    }
    return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *) byte));
}

// Sets the tables of byte c, and of byte 16 + c, of a chunk. q are the values of their 8 columns.
static inline void tables_of_byte(chunk_tables & tables, int c, __m256i q) {
    __m256i digit[3];
    pair_digits(digit, q);
    UNROLLED
    for (int k = 0; k < 3; k++) {
        tables.digit[k][2 * c] =
            _mm256_add_epi8(_mm256_shuffle_epi8(digit[k], bytes_of_nibble<0, 0>()), _mm256_shuffle_epi8(digit[k], bytes_of_nibble<1, 2>()));
        tables.digit[k][2 * c + 1] =
            _mm256_add_epi8(_mm256_shuffle_epi8(digit[k], bytes_of_nibble<2, 0>()), _mm256_shuffle_epi8(digit[k], bytes_of_nibble<3, 2>()));
    }
}

static inline __m256i load_halves(const int8_t * low, const int8_t * high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) low)), _mm_loadu_si128((const __m128i *) high),
                                   1);
}

// Makes the tables of a chunk and returns the sums of |q_j|, spread over 8 lanes.
static __m256i make_tables(chunk_tables & tables, const int8_t * q) {
    __m256i magnitude = _mm256_setzero_si256();
    for (int i = 0; i < 8; i++) { // 16 columns, and the 16 columns 128 further
        const int8_t * src = q + i / 4 * (2 * DQRELO_Q_BLOCK) + i % 4 * 16;
        const __m256i  lo  = load_halves(src + DQRELO_Q_BLOCK, src + 5 * DQRELO_Q_BLOCK);
        // The low byte is signed, so where it is negative the high byte of 256 hi + lo is one less.
        const __m256i hi = _mm256_add_epi8(load_halves(src, src + 4 * DQRELO_Q_BLOCK), _mm256_cmpgt_epi8(_mm256_setzero_si256(), lo));
        const __m256i q0 = _mm256_unpacklo_epi8(lo, hi);
        const __m256i q1 = _mm256_unpackhi_epi8(lo, hi);
        tables_of_byte(tables, 2 * i, q0);
        tables_of_byte(tables, 2 * i + 1, q1);
        const __m256i one = _mm256_set1_epi16(1);
        magnitude         = _mm256_add_epi32(magnitude, _mm256_madd_epi16(_mm256_abs_epi16(q0), one));
        magnitude         = _mm256_add_epi32(magnitude, _mm256_madd_epi16(_mm256_abs_epi16(q1), one));
    }
    return magnitude;
}

// Makes the tables of n columns, chunk by chunk. The last may be incomplete: q is padded to whole blocks of 64 columns only.
static void make_row_tables(chunk_tables * tables, const int8_t * q, int64_t n, int32_t * magnitude) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; j += CHUNK_COLUMNS, tables++, q += 2 * CHUNK_COLUMNS) {
        int8_t         last[2 * CHUNK_COLUMNS] = { 0 };
        const int8_t * src                     = q;
        if (n - j < CHUNK_COLUMNS) {
            memcpy(last, q, (size_t) dqrelo_q_bytes(n - j));
            src = last;
        }
        sum = _mm256_add_epi32(sum, make_tables(*tables, src));
    }
    *magnitude += _mm_cvtsi128_si32(sums_i32x4(sum, sum, sum, sum));
}

//
// nibbles
//

// Takes the first half of a transposition of 16 x 16 bytes, and again the second, in each half of vectors i, i + 4, i + 8 and i + 12; the
// results are vectors 4 i to 4 i + 3. The address of a byte is two numbers of four bits, row and column, which change places: a pair of
// unpack instructions turns it by one bit.
static inline void transpose_quad(__m256i (&out)[16], const __m256i (&in)[16], int i) {
    const __m256i v0 = _mm256_unpacklo_epi8(in[i], in[i + 8]);
    const __m256i v1 = _mm256_unpackhi_epi8(in[i], in[i + 8]);
    const __m256i v2 = _mm256_unpacklo_epi8(in[i + 4], in[i + 12]);
    const __m256i v3 = _mm256_unpackhi_epi8(in[i + 4], in[i + 12]);
    out[4 * i]       = _mm256_unpacklo_epi8(v0, v2);
    out[4 * i + 1]   = _mm256_unpackhi_epi8(v0, v2);
    out[4 * i + 2]   = _mm256_unpacklo_epi8(v1, v3);
    out[4 * i + 3]   = _mm256_unpackhi_epi8(v1, v3);
}

// Sets at[step][0] to the nibbles of a chunk of 16 rows.
static inline void chunk_nibbles(__m256i (*at)[GROUPS], const uint8_t * sign, int64_t row_bytes) {
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i       v[16], half[16], byte[16];
    UNROLLED
    for (int i = 0; i < 4; i++) {
        UNROLLED
        for (int r = i; r < 16; r += 4) {
            v[r] = _mm256_loadu_si256((const __m256i *) (sign + r * row_bytes));
        }
        transpose_quad(half, v, i);
    }
    UNROLLED
    for (int i = 0; i < 4; i++) {
        transpose_quad(byte, half, i);
        UNROLLED
        for (int c = 4 * i; c < 4 * i + 4; c++) {
            at[2 * c][0]     = _mm256_and_si256(byte[c], mask);
            at[2 * c + 1][0] = _mm256_and_si256(_mm256_srli_epi16(byte[c], 4), mask);
        }
    }
}

// Sets the nibbles of the first n_chunks chunks of the signs at `sign`. Of their 64 rows, row_bytes apart, n_rows are there, and n_bytes
// bytes of each; the others become zeros.
static void make_nibbles(unit_nibbles & nibbles, const uint8_t * sign, int n_rows, int64_t row_bytes, int64_t n_bytes, int n_chunks) {
    constexpr int64_t   CHUNK_BYTES = CHUNK_COLUMNS / 8;
    constexpr int64_t   UNIT_BYTES  = UNIT_CHUNKS * CHUNK_BYTES;
    alignas(32) uint8_t piece[BLOCK_ROWS * UNIT_BYTES];
    if (n_rows < BLOCK_ROWS || n_bytes < n_chunks * CHUNK_BYTES) {
        memset(piece, 0, sizeof(piece));
        for (int r = 0; r < n_rows && r < BLOCK_ROWS; r++) {
            memcpy(piece + r * UNIT_BYTES, sign + r * row_bytes, (size_t) (n_bytes < UNIT_BYTES ? n_bytes : UNIT_BYTES));
        }
        sign      = piece;
        row_bytes = UNIT_BYTES;
    }
    for (int g = 0; g < GROUPS; g++) {
        for (int c = 0; c < n_chunks; c++) {
            chunk_nibbles((__m256i(*)[GROUPS]) & nibbles.at[c * STEPS][g], sign + 16 * g * row_bytes + c * CHUNK_BYTES, row_bytes);
        }
    }
}

//
// sums
//

// Adds v to sum. This is assembler because GCC 12 copies the sums of the intrinsic in every step and keeps some of them in memory.
static inline void add_i16x16(__m256i & sum, __m256i v) {
    __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(v));
}

// Adds what the nibbles of n_chunks chunks select of a digit's tables. Sums of N_ADD bytes of the tables fit in a byte. Each iteration asks
// for the next bytes of signs, so that requests are spread evenly; they go to the second cache, because the first one is full of tables.
template <int N_ADD, bool ASKS_AHEAD>
static __attribute__((noinline)) void look_up(workspace & w, digit_sums & sums, const chunk_tables * tables, int k, int n_chunks) {
    __m256i both[GROUPS], odd[GROUPS];
    UNROLLED
    for (int g = 0; g < GROUPS; g++) {
        both[g] = sums.both[g];
        odd[g]  = sums.odd[g];
    }
    uintptr_t       next       = w.next;
    uintptr_t       ahead      = w.ahead;
    const uintptr_t step       = w.step;
    const __m256i(*at)[GROUPS] = w.nibbles.at;
    for (int c = 0; c < n_chunks; c++) {
        const __m256i * table = tables[c].digit[k];
        for (const __m256i * end = table + STEPS; table < end; table += N_ADD, at += N_ADD, next += step) {
            prefetch_lines<64>(next);
            if (ASKS_AHEAD) {
                prefetch_lines<64>(ahead);
                ahead += 64;
            }
            UNROLLED
            for (int g = 0; g < GROUPS; g++) {
                __m256i v = _mm256_shuffle_epi8(table[0], at[0][g]);
                UNROLLED
                for (int a = 1; a < N_ADD; a++) {
                    v = _mm256_add_epi8(v, _mm256_shuffle_epi8(table[a], at[a][g]));
                }
                add_i16x16(both[g], v);
                add_i16x16(odd[g], _mm256_srli_epi16(v, 8));
            }
        }
    }
    w.next  = next;
    w.ahead = ahead;
    UNROLLED
    for (int g = 0; g < GROUPS; g++) {
        sums.both[g] = both[g];
        sums.odd[g]  = odd[g];
    }
}

// Adds to the sums of 64 rows of signs what the tables of each of the three digits give for n_chunks chunks of columns.
template <bool ASKS_AHEAD>
static inline void look_up_digits(workspace & w, digit_sums (&sums)[3], const chunk_tables * tables, int n_chunks) {
    look_up<2, ASKS_AHEAD>(w, sums[0], tables, 0, n_chunks);
    look_up<4, ASKS_AHEAD>(w, sums[1], tables, 1, n_chunks);
    look_up<4, ASKS_AHEAD>(w, sums[2], tables, 2, n_chunks);
}

// Returns the sums of 8 rows in 32 bits. Both halves of v are sums of the same rows.
static inline __m256i halves_i32x8(__m256i v) {
    return _mm256_add_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}

static inline void add_to(int32_t * out, __m256i v, int n, bool accumulate) {
    const __m256i m = lanes_i32x8(n);
    _mm256_maskstore_epi32(out, m, accumulate ? _mm256_add_epi32(v, _mm256_maskload_epi32(out, m)) : v);
}

// Sets, or adds to, out[i] what the tables gave to 64 rows of signs, or the first n_i of them, and a row of q.
static void store_sums(const digit_sums (&sums)[3], int32_t magnitude, int n_i, bool accumulate, int32_t * out) {
    const __m256i offset = _mm256_set1_epi32(-magnitude);
    for (int g = 0; g < GROUPS; g++) {
        __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
        UNROLLED
        for (int k = 0; k < 3; k++) {
            const int     shift = k == 0 ? 1 : k == 1 ? 7 : 12; // twice the digit's value
            const __m256i v     = _mm256_sub_epi16(sums[k].both[g], _mm256_slli_epi16(sums[k].odd[g], 8));
            even                = _mm256_add_epi32(even, _mm256_slli_epi32(halves_i32x8(v), shift));
            odd                 = _mm256_add_epi32(odd, _mm256_slli_epi32(halves_i32x8(sums[k].odd[g]), shift));
        }
        even             = _mm256_add_epi32(even, offset);
        odd              = _mm256_add_epi32(odd, offset);
        const __m256i v0 = _mm256_unpacklo_epi32(even, odd);
        const __m256i v1 = _mm256_unpackhi_epi32(even, odd);
        add_to(out + 16 * g, _mm256_permute2x128_si256(v0, v1, 0x20), n_i - 16 * g, accumulate);
        add_to(out + 16 * g + 8, _mm256_permute2x128_si256(v0, v1, 0x31), n_i - 16 * g - 8, accumulate);
    }
}

// Adds the products of a block of rows with n_t rows of q in a segment of n_chunks chunks, which begins at byte `offset` of the rows. With
// one row of q, memory has no time to spare: each unit of 64 lines asks in its 64 iterations for the same unit of what comes next, which
// begins at `next`.
static void add_block(workspace & w, int block, const uint8_t * sign, const uint8_t * next, int n_i, int64_t row_bytes, int64_t offset,
                      int n_t, int n_chunks) {
    for (int c = 0; c < n_chunks; c += UNIT_CHUNKS) {
        const int     n_unit = n_chunks - c < UNIT_CHUNKS ? n_chunks - c : UNIT_CHUNKS;
        const int64_t at     = offset + c * (CHUNK_COLUMNS / 8);
        make_nibbles(w.nibbles, sign + at, n_i, row_bytes, row_bytes - at, n_unit);
        if (n_t == 1) {
            w.next = (uintptr_t) next + (uintptr_t) (c * (CHUNK_COLUMNS / 8));
        }
        for (int t = 0; t < n_t; t++) {
            const chunk_tables * tables = w.tables + t * n_chunks + c;
            if (n_t == 1 && w.ahead < w.ahead_end) {
                look_up_digits<true>(w, w.sums[t][block], tables, n_unit);
            } else {
                look_up_digits<false>(w, w.sums[t][block], tables, n_unit);
            }
        }
    }
}

// Begins with the requests to memory. For several rows of q, signs are asked for in the order of memory, as far ahead as it takes to read
// all that lies between: a block of rows where a segment has all columns, else the tile.
static void begin_requests(workspace & w, const uint8_t * sign, int n_i, int n_t, int64_t n, int64_t segment) {
    constexpr int64_t MOST  = 320 * 1024; // More would not stay in the second cache.
    const int64_t     ahead = (n <= segment ? BLOCK_ROWS : n_i) * (n / 8);
    // These are integers, because they may lie behind the end of the data, where no pointer may point.
    w.next = (uintptr_t) sign + (uintptr_t) (ahead < MOST ? ahead : MOST);
    w.step = (uintptr_t) (n_t == 1 ? n / 8 : 64 / n_t); // A unit has 64 lines, and 64 iterations for each row of q.
}

// Returns what comes after the block of rows from row i on, in the segment from column j on: the next block, the first one in the next
// segment, or the next tile.
static const uint8_t * block_after(const uint8_t * sign, int i, int n_i, int64_t j, int64_t segment, int64_t n) {
    if (i + BLOCK_ROWS < n_i) {
        return sign + (i + BLOCK_ROWS) * (n / 8) + j / 8;
    }
    return j + segment < n ? sign + (j + segment) / 8 : sign + n_i * (n / 8);
}

// Multiplies a tile of signs with n_t <= MAX_T rows of q.
static void sign_dots_tile(workspace & w, const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, int n_t, int64_t n,
                           int32_t * out, int64_t ld) {
    constexpr int64_t SUM_COLUMNS = SUM_CHUNKS * CHUNK_COLUMNS;
    const int64_t     segment     = SUM_CHUNKS / n_t / UNIT_CHUNKS * UNIT_CHUNKS * CHUNK_COLUMNS;
    begin_requests(w, sign, n_i, n_t, n, segment);
    for (int64_t j0 = 0; j0 < n; j0 += SUM_COLUMNS) {
        const int64_t j1 = n - j0 < SUM_COLUMNS ? n : j0 + SUM_COLUMNS;
        memset(w.sums, 0, (size_t) n_t * sizeof(w.sums[0]));
        memset(w.magnitude, 0, sizeof(w.magnitude));
        for (int64_t j = j0; j < j1; j += segment) {
            const int64_t n_columns = j1 - j < segment ? j1 - j : segment;
            const int     n_chunks  = (int) ((n_columns + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS);
            for (int t = 0; t < n_t; t++) {
                make_row_tables(w.tables + t * n_chunks, q + t * q_stride + 2 * j, n_columns, &w.magnitude[t]);
            }
            for (int i = 0; i < n_i; i += BLOCK_ROWS) {
                const uint8_t * next = block_after(sign, i, n_i, j, segment, n);
                add_block(w, i / BLOCK_ROWS, sign + i * (n / 8), next, n_i - i, n / 8, j / 8, n_t, n_chunks);
            }
        }
        for (int t = 0; t < n_t; t++) {
            for (int i = 0; i < n_i; i += BLOCK_ROWS) {
                store_sums(w.sums[t][i / BLOCK_ROWS], w.magnitude[t], n_i - i, j0 > 0, out + t * ld + i);
            }
        }
    }
}

void sign_dots_avx2(const uint8_t * sign, int n_i, const int8_t * q, int64_t q_stride, const struct dqrelo_act * /* act */, int n_t,
                    int64_t n, int32_t * out, int64_t ld, struct dqrelo_ahead * ahead) {
    constexpr int ROWS    = MAX_BLOCKS * BLOCK_ROWS;
    const int     n_tiles = (n_t + MAX_T - 1) / MAX_T; // of rows of q, as equal as can be
    workspace     w;
    w.ahead     = ahead->next;
    w.ahead_end = ahead->end;
    for (int k = 0; k < n_tiles; k++) {
        const int t0 = n_t * k / n_tiles, t1 = n_t * (k + 1) / n_tiles;
        for (int i = 0; i < n_i; i += ROWS) {
            sign_dots_tile(w, sign + i * (n / 8), n_i - i < ROWS ? n_i - i : ROWS, q + t0 * q_stride, q_stride, t1 - t0, n,
                           out + t0 * ld + i, ld);
        }
    }
    ahead->next = w.ahead;
}
