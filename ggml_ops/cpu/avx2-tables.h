// avx2-tables.h: what the products with sign planes for AVX2 share: tables of partial sums, and the signs that select of them.
//
// sum_j s_j q_j = 2 sum_{j: s_j q_j > 0} |q_j| - sum_j |q_j|. For four columns, a nibble of signs, the first sum has 16 possible values,
// which are put into a table once; vpshufb then looks up the nibbles of 16 rows of signs in each of its halves. A value has 17 bits and a
// table bytes, so there are three tables: each half of a value, of two columns, is below 2^16 and is cut into digits of 6, 5 and 5 bits,
// and the digits of both halves are added without a carry. They are at most 126, 62 and 62, so 2, 4 and 4 of them are added in a byte
// before they are widened to 16 bits, where those of 4096 columns fit. Widening is three instructions: all bytes are added as they lie,
// v = even + 256 odd, and v >> 8 is added to a second sum; the even ones are what is left of the first.
//
// Bytes of 0 and 1 in the place of signs, multiplied by vpmaddubsw, took 42 instructions for 256 signs and a row of q, where tables take
// 25 to 41 (avx2-signs.cpp, avx2-sign-row.cpp). AVX-VNNI would take 26, and 16 of them are vpdpbusd, of which a core does two a cycle:
// docs/operator.md has the times.
#pragma once

#include "avx2.h"
#include "prefetch.h"
#include "transposed-signs.h"

#include <string.h>

static constexpr int64_t CHUNK_COLUMNS = 256;
static constexpr int64_t CHUNK_BYTES   = CHUNK_COLUMNS / 8;
static constexpr int     STEPS         = 32; // of a chunk
static constexpr int     UNIT_CHUNKS   = 2;
static constexpr int64_t UNIT_BYTES    = UNIT_CHUNKS * CHUNK_BYTES;
static constexpr int     SUM_CHUNKS    = 16; // So many chunks fit in 16-bit sums.
static constexpr int64_t SUM_COLUMNS   = SUM_CHUNKS * CHUNK_COLUMNS;
static constexpr int     GROUPS        = 4;
static constexpr int     BLOCK_ROWS    = 16 * GROUPS;

static_assert(UNIT_BYTES == DQRELO_UNIT_BYTES && BLOCK_ROWS == DQRELO_BLOCK_ROWS, "transposed signs lie as they are read");

// A chunk of columns is 32 bytes of signs of a row, a unit is a cache line. Rows of signs are taken in blocks of 64, four groups of 16, and
// blocks in tiles, which is why DQRELO_TILE_I is 256.

// The tables of a chunk. Step 2 c + h has those of nibble h of byte c in its low half, of byte 16 + c in its high half.
struct chunk_tables {
    __m256i digit[3][STEPS];
};

// Sums of one digit in 16-bit lanes: of odd rows, and even rows + 256 odd rows.
struct digit_sums {
    __m256i both[GROUPS];
    __m256i odd[GROUPS];
};

static inline int chunks_of(int64_t n_columns) {
    return (int) ((n_columns + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS);
}

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

// Returns for each of the 16 nibbles the byte of the pair at `pair` that it selects with its bits `bit` and `bit` + 1. The array is a
// constant of the program: Clang would make it anew in every step.
template <int pair, int bit>
static inline __m256i bytes_of_nibble() {
    struct bytes {
        alignas(16) int8_t byte[16] = {};

        constexpr bytes() {
            for (int e = 0; e < 16; e++) {
                byte[e] = (int8_t) (4 * pair + (e >> bit & 1) * 2 + (e >> bit >> 1 & 1));
            }
        }
    };
    static constexpr bytes BYTES;
    return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *) BYTES.byte));
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
static inline __m256i make_tables(chunk_tables & tables, const int8_t * q) {
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
static inline void make_row_tables(chunk_tables * tables, const int8_t * q, int64_t n, int32_t * magnitude) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; j += CHUNK_COLUMNS, tables++, q += 2 * CHUNK_COLUMNS) {
        int8_t         last[2 * CHUNK_COLUMNS];
        const int8_t * src = q;
        if (n - j < CHUNK_COLUMNS) {
            memset(last, 0, sizeof(last));
            memcpy(last, q, (size_t) dqrelo_q_bytes(n - j));
            src = last;
        }
        sum = _mm256_add_epi32(sum, make_tables(*tables, src));
    }
    *magnitude += _mm_cvtsi128_si32(sums_i32x4(sum, sum, sum, sum));
}

//
// signs
//

namespace { // Methods of classes would be weak symbols outside of it.

// The signs of a block of rows of a tile in a segment of columns, which begins at byte `offset` of the rows. Of the tile's rows from the
// block's first one on, row `i` of the tile, n_i are there, maybe more than those of the block.
struct sign_piece {
    const dqrelo_sign_tile * tile;
    int                      i, n_i;
    int64_t                  row_bytes;
    int64_t                  offset;
    int64_t                  n_columns;

    // Returns where the block's first row begins, if it is not transposed.
    const uint8_t * row() const { return tile->sign + i * row_bytes; }

    // Whether all signs of group g are there, transposed.
    bool is_transposed(int g) const { return tile->transposed && n_i >= (g + 1) * DQRELO_GROUP_ROWS; }

    // Returns where chunk c of group g lies, transposed.
    const uint8_t * chunk(int g, int c) const {
        return tile->sign - tile->row * row_bytes +
               dqrelo_chunk_offset(tile->row + i + g * DQRELO_GROUP_ROWS, tile->n_rows, row_bytes, offset / CHUNK_BYTES + c);
    }

    // Returns how many bytes of each row chunk c has.
    int chunk_bytes(int c) const {
        const int64_t n = row_bytes - offset - c * CHUNK_BYTES;
        return (int) (n < CHUNK_BYTES ? n : CHUNK_BYTES);
    }
};

} // namespace

// A block of rows in a unit of columns, or some chunks of it: up to 64 rows, row_bytes apart. Behind the last column, where tables are
// zeros, and behind the last row there is anything.
struct sign_unit {
    const uint8_t * sign;
    int64_t         row_bytes;
    int             n_chunks;
};

// Returns how many chunks a unit has that begins with chunk c of a piece.
static inline int unit_chunks(const sign_piece & piece, int c) {
    const int n_left = chunks_of(piece.n_columns) - c;
    return n_left < UNIT_CHUNKS ? n_left : UNIT_CHUNKS;
}

using unit_copy = uint8_t[(BLOCK_ROWS + 1) * UNIT_BYTES];

// Returns n_read rows of the unit of a piece from chunk c on. What cannot be read there, because it lies behind the caller's rows, is in
// `copy`.
static inline sign_unit unit_of(const sign_piece & piece, int n_read, int c, unit_copy & copy) {
    const int     n_chunks = unit_chunks(piece, c);
    const int64_t at       = piece.offset + c * CHUNK_BYTES;
    if ((n_read - 1) * piece.row_bytes + at + n_chunks * CHUNK_BYTES <= piece.n_i * piece.row_bytes) {
        return { piece.row() + at, piece.row_bytes, n_chunks };
    }
    memset(copy, 0, sizeof(copy));
    const int n_rows = piece.n_i < BLOCK_ROWS ? piece.n_i : BLOCK_ROWS;
    if (piece.row_bytes <= UNIT_BYTES) { // The rows lie close together, and are copied as they lie.
        memcpy(copy, piece.row(), (size_t) (n_rows * piece.row_bytes));
        return { copy + at, piece.row_bytes, n_chunks };
    }
    const int64_t n_bytes = piece.row_bytes - at < UNIT_BYTES ? piece.row_bytes - at : UNIT_BYTES;
    for (int r = 0; r < n_rows; r++) {
        memcpy(copy + r * UNIT_BYTES, piece.row() + r * piece.row_bytes + at, (size_t) n_bytes);
    }
    return { copy, UNIT_BYTES, n_chunks };
}

// Interleaves the bytes of vectors k and k + 4, which become vectors 2 k and 2 k + 1, in each half. The address of a byte is two numbers,
// row and column; a transposition makes them change places, and this turns the address by one bit.
static inline void interleave(__m256i (&v)[8]) {
    const __m256i in[8] = { v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7] };
    UNROLLED
    for (int k = 0; k < 4; k++) {
        v[2 * k]     = _mm256_unpacklo_epi8(in[k], in[k + 4]);
        v[2 * k + 1] = _mm256_unpackhi_epi8(in[k], in[k + 4]);
    }
}

// Takes three of the four steps of a transposition of 16 x 16 bytes, those of every other row.
static inline void transpose_rows(__m256i (&v)[8], const uint8_t * sign, int64_t row_bytes) {
    UNROLLED
    for (int k = 0; k < 8; k++) {
        v[k] = _mm256_loadu_si256((const __m256i *) (sign + 2 * k * row_bytes));
    }
    interleave(v);
    interleave(v);
    interleave(v);
}

// Returns vector b of a whole transposed chunk: bytes b of 16 rows, and bytes 16 + b in the high half.
static inline __m256i bytes_of_chunk(const uint8_t * chunk, int b) {
    return _mm256_loadu_si256((const __m256i *) (chunk + 32 * b));
}

// The same of a chunk that has n_bytes of each row. There are zeros where it has none.
static inline __m256i bytes_of_last_chunk(const uint8_t * chunk, int b, int n_bytes) {
    const int n_pairs = n_bytes > CHUNK_BYTES / 2 ? n_bytes - CHUNK_BYTES / 2 : 0;
    if (b < n_pairs) {
        return bytes_of_chunk(chunk, b);
    }
    if (b < n_bytes) { // It has no partner.
        return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (chunk + DQRELO_GROUP_ROWS * (b + n_pairs))));
    }
    return _mm256_setzero_si256();
}

// Sets `low` and `high` to the nibbles of bytes; mask is 15 in each.
static inline void split_nibbles(__m256i & low, __m256i & high, __m256i bytes, __m256i mask) {
    low  = _mm256_and_si256(bytes, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
}

//
// sums
//

// Adds v to sum. This is assembler because GCC 12 copies the sums of the intrinsic in every step and keeps some of them in memory.
static inline void add_i16x16(__m256i & sum, __m256i v) {
    __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(v));
}

// Adds v to the sums of both rows, and its upper bytes to those of odd rows.
static inline void add_bytes(__m256i & both, __m256i & odd, __m256i v) {
    add_i16x16(both, v);
    add_i16x16(odd, _mm256_srli_epi16(v, 8));
}

// Returns the sums of 8 rows in 32 bits. Both halves of v are sums of the same rows.
static inline __m256i halves_i32x8(__m256i v) {
    return _mm256_add_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}

static inline void add_to(int32_t * out, __m256i v, int n, bool accumulate) {
    store_first_8(out, accumulate ? _mm256_add_epi32(v, load_first_8(out, n)) : v, n);
}

// Sets, or adds to, out[i] what the tables gave to 64 rows of signs, or the first n_i of them, and a row of q.
static inline void store_sums(const digit_sums (&sums)[3], int32_t magnitude, int n_i, bool accumulate, int32_t * out) {
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
