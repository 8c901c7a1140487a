// avx512vbmi-signs.cpp: products of sign planes for AVX-512 VBMI, by tables of partial sums.
//
// A byte of signs is two patterns of four. For each four columns of q there are the 16 sums
//   T(pattern) = sum of |q_j| over the columns j whose sign in the pattern is that of q_j
// and, with M = sum_j max(0, -q_j),
//   sum_j s_j q_j = 2 (sum T - M) - sum_j q_j
// vpermb looks patterns up in 64 bytes, which are the sums of 16 columns, one byte of each: those that the lower halves of four bytes of
// signs select, or the upper halves. So four bytes of each of 16 rows of signs are brought into one vector:
//
//               16 bytes of signs                bytes 0..3    4..7   ...
//             +-------------------+             +---------+ +---------+
//   16 rows   |                   |      =>     | 16 rows | | 16 rows | ...
//             +-------------------+             +---------+ +---------+
//
// The bytes that are found lie by fours in the lane of their row, and vpdpbusd with ones adds them to its sum. Instructions for 256 signs,
// and those of them that each of up to three rows of q takes:
//
//   2             loads and insertions
//   1             to transpose
//   1.5           to split bytes
//   1     each    loads of tables, which two blocks of rows of signs share
//   2     each    look-ups in tables of the lower and the upper byte
//   2     each    vpdpbusd
//   1.5           prefetches
//
// The products of avx512vnni-signs.cpp take 4 and 8 for each row of q, which are vpdpbusd, of which Zen 4 starts one a cycle. To make the
// tables of a row takes as long as to look 60 rows of signs up in them. Tables of six columns for 64 rows of signs, three bytes each, which
// several rows of q had before, need bytes that are transposed in four steps instead of two.

#include "avx512vnni.h"
#include "prefetch.h"

static constexpr int64_t STEP_BYTES   = 16; // of signs
static constexpr int64_t STEP_COLUMNS = 8 * STEP_BYTES;
static constexpr int     STEP_TABLES  = 8; // of 16 columns each
static constexpr int     MOST_STEPS   = 160;
static constexpr int     MOST_RESTS   = 128;
static constexpr int     MOST_ROWS    = 3;  // of q
static constexpr int     BLOCK        = 16; // rows of signs
static constexpr int     SET          = 2;  // blocks that share the loads of tables

namespace {

// The lower bytes of sums, and the upper ones. Byte 16 k + p is that of pattern p of columns 8 k + 4 h to 8 k + 4 h + 3 of 32 columns: h =
// 0 for the first four of eight, and 1 for the others.
struct sum_table {
    alignas(64) uint8_t lower[64], upper[64];
};

// What rows of q are looked up in: step k of a row has tables 2 d + h of columns 128 k + 32 d on. A sum of four q may be larger than two
// bytes; then the table has what they are with q of half of the magnitude at most, and another one the rest: bit t of large says so of
// table t. These are rare, and lie one behind the other.
struct row_tables {
    struct row {
        int     step, rest; // its first ones
        int32_t negative;   // M
    };

    sum_table step[MOST_STEPS][STEP_TABLES];
    uint8_t   large[MOST_STEPS];
    sum_table rest[MOST_RESTS];
    row       rows[MOST_ROWS];
    int       n_steps, n_rests;

    void clear() { n_steps = n_rests = 0; }

    // Adds those of row t, and returns whether there was room.
    bool add(int t, const int8_t * q, int64_t n);
};

} // namespace

//
// tables
//

// Returns q of 32 columns from their bytes.
static inline __m512i q_i16x32(__m256i hi, __m256i lo) {
    return _mm512_add_epi16(_mm512_slli_epi16(_mm512_cvtepi8_epi16(hi), 8), _mm512_cvtepi8_epi16(lo));
}

// Sets v to q of a block's 64 columns, or to zeros where it lies behind column n.
static inline void read_q(const int8_t * q, int64_t j, int64_t n, __m512i (&v)[2]) {
    v[0] = v[1] = _mm512_setzero_si512();
    if (j < n) {
        const int8_t * block = q + 2 * j;
        const __m512i  hi = interleave_q(_mm512_loadu_si512(block)), lo = interleave_q(_mm512_loadu_si512(block + DQRELO_Q_BLOCK));
        v[0] = q_i16x32(_mm512_castsi512_si256(hi), _mm512_castsi512_si256(lo));
        v[1] = q_i16x32(_mm512_extracti64x4_epi64(hi, 1), _mm512_extracti64x4_epi64(lo, 1));
    }
}

// Returns max(0, -v) of 16 bits.
static inline __m512i less_than_zero(__m512i v) {
    return _mm512_max_epi16(_mm512_sub_epi16(_mm512_setzero_si512(), v), _mm512_setzero_si512());
}

// Returns the sums of two neighbours of 16 bits, in 32.
static inline __m512i sums_of_pairs(__m512i v) {
    return _mm512_madd_epi16(v, _mm512_set1_epi16(1));
}

static inline __m512i swap_i32(__m512i v) {
    return _mm512_shuffle_epi32(v, _MM_PERM_CDAB);
}

// Makes the table of each first or second four of a lane's eight columns.
template <int H>
static inline void make_table(sum_table & table, __m512i v) {
    const __m512i q0 = _mm512_shuffle_epi8(v, _mm512_set1_epi16((8 * H + 1) << 8 | 8 * H));
    const __m512i q1 = _mm512_shuffle_epi8(v, _mm512_set1_epi16((8 * H + 3) << 8 | (8 * H + 2)));
    const __m512i q2 = _mm512_shuffle_epi8(v, _mm512_set1_epi16((8 * H + 5) << 8 | (8 * H + 4)));
    const __m512i q3 = _mm512_shuffle_epi8(v, _mm512_set1_epi16((8 * H + 7) << 8 | (8 * H + 6)));

    const __m512i less   = less_than_zero(v);
    const __m512i pairs  = _mm512_add_epi16(less, _mm512_rol_epi32(less, 16));
    const __m512i fours  = _mm512_add_epi16(pairs, swap_i32(pairs)); // M, in four places
    __m512i       sums   = H == 0 ? _mm512_unpacklo_epi64(fours, fours) : _mm512_unpackhi_epi64(fours, fours);
    sums                 = _mm512_mask_add_epi16(sums, 0xaaaaaaaa, sums, q0);
    sums                 = _mm512_mask_add_epi16(sums, 0xcccccccc, sums, q1);
    sums                 = _mm512_mask_add_epi16(sums, 0xf0f0f0f0, sums, q2); // patterns 0 to 7
    const __m512i others = _mm512_add_epi16(sums, q3);                        // and 8 to 15
    const __m512i byte   = _mm512_set1_epi16(0xff);
    _mm512_store_si512(table.lower, _mm512_packus_epi16(_mm512_and_si512(sums, byte), _mm512_and_si512(others, byte)));
    _mm512_store_si512(table.upper, _mm512_packus_epi16(_mm512_srli_epi16(sums, 8), _mm512_srli_epi16(others, 8)));
}

// Returns which of 32 columns belong to a table in which the magnitudes of some four are more than 16 bits in sum.
static inline __mmask32 large_columns(__m512i v) {
    const __m512i   pairs = sums_of_pairs(_mm512_abs_epi16(v));
    const __mmask16 fours = _mm512_cmpgt_epi32_mask(_mm512_add_epi32(pairs, swap_i32(pairs)), _mm512_set1_epi32(0xffff));
    return (fours & 0x3333 ? 0x0f0f0f0f : 0) | (fours & 0xcccc ? 0xf0f0f0f0 : 0);
}

bool row_tables::add(int t, const int8_t * q, int64_t n) {
    if (n_steps + (n + STEP_COLUMNS - 1) / STEP_COLUMNS > MOST_STEPS) {
        return false;
    }
    row &   own  = rows[t];
    __m512i sums = _mm512_setzero_si512();
    own          = { n_steps, n_rests, 0 };
    for (int64_t j = 0; j < n; j += STEP_COLUMNS, n_steps++) {
        large[n_steps] = 0;
        for (int i = 0; i < STEP_TABLES; i += 4) {
            __m512i v[2];
            read_q(q, j + i * 16, n, v);
            UNROLLED
            for (int d = 0; d < 2; d++) {
                sums                    = _mm512_add_epi32(sums, sums_of_pairs(less_than_zero(v[d])));
                const __mmask32 columns = large_columns(v[d]);
                __m512i         most    = v[d];
                if (columns != 0) {
                    if (n_rests + 2 > MOST_RESTS) {
                        return false;
                    }
                    most                 = _mm512_mask_min_epi16(most, columns, most, _mm512_set1_epi16(0x3fff));
                    most                 = _mm512_mask_max_epi16(most, columns, most, _mm512_set1_epi16(-0x3fff));
                    const __m512i others = _mm512_sub_epi16(v[d], most);
                    if (columns & 0x0f) {
                        large[n_steps] |= (uint8_t) (1 << (i + 2 * d));
                        make_table<0>(rest[n_rests++], others);
                    }
                    if (columns & 0xf0) {
                        large[n_steps] |= (uint8_t) (2 << (i + 2 * d));
                        make_table<1>(rest[n_rests++], others);
                    }
                }
                make_table<0>(step[n_steps][i + 2 * d], most);
                make_table<1>(step[n_steps][i + 2 * d + 1], most);
            }
        }
    }
    own.negative = _mm512_reduce_add_epi32(sums);
    return true;
}

//
// look-ups
//

namespace {

// Rows of signs, of which a step reads 16 bytes each, or fewer at their end.
struct sign_rows {
    const uint8_t * sign;
    int64_t         row_bytes;
    int             n_i; // Behind the end the last row is taken again.

    template <bool ALL_ROWS, bool ALL_BYTES>
    inline __m128i bytes(int i, __mmask16 there) const {
        const uint8_t * row = sign + (ALL_ROWS || i < n_i ? i : n_i - 1) * row_bytes;
        return ALL_BYTES ? _mm_loadu_si128((const __m128i *) row) : _mm_maskz_loadu_epi8(there, row);
    }
};

// What is asked for while a step is multiplied, a cache line of each with each table. Memory is asked in its order, from a set of rows and
// 2 KiB ahead on. A step reads a piece of each row, so lines that have come are brought on into the first cache before they are read,
// `near`: those of each row's next piece. (Requests of memory in the order in which lines are read took 1.4 times as long; larger distances
// than 2 KiB take up to 1.2 times as long.)
struct step_requests {
    sign_requests &       signs;
    struct dqrelo_ahead & after;
    uintptr_t             near, row_bytes;

    inline void ask() {
        signs.ask<DQRELO_CACHE_2>();
        prefetch_ahead(after);
        prefetch_lines<64, DQRELO_CACHE_1>(near);
        near += row_bytes;
    }
};

} // namespace

// Sets fours[d] to bytes 4 d to 4 d + 3 of 16 rows from row i on.
template <bool ALL_ROWS, bool ALL_BYTES>
static inline void transpose_rows(const sign_rows & rows, int i, __mmask16 there, __m512i (&fours)[4]) {
    __m512i v[4]; // In lane l of vector k lies row 4 l + k.
    UNROLLED
    for (int k = 0; k < 4; k++) {
        v[k] = _mm512_castsi128_si512(rows.bytes<ALL_ROWS, ALL_BYTES>(i + k, there));
        v[k] = _mm512_inserti32x4(v[k], (rows.bytes<ALL_ROWS, ALL_BYTES>(i + k + 4, there)), 1);
        v[k] = _mm512_inserti32x4(v[k], (rows.bytes<ALL_ROWS, ALL_BYTES>(i + k + 8, there)), 2);
        v[k] = _mm512_inserti32x4(v[k], (rows.bytes<ALL_ROWS, ALL_BYTES>(i + k + 12, there)), 3);
    }
    const __m512i lower01 = _mm512_unpacklo_epi32(v[0], v[1]), lower23 = _mm512_unpacklo_epi32(v[2], v[3]);
    const __m512i upper01 = _mm512_unpackhi_epi32(v[0], v[1]), upper23 = _mm512_unpackhi_epi32(v[2], v[3]);
    fours[0] = _mm512_unpacklo_epi64(lower01, lower23);
    fours[1] = _mm512_unpackhi_epi64(lower01, lower23);
    fours[2] = _mm512_unpacklo_epi64(upper01, upper23);
    fours[3] = _mm512_unpackhi_epi64(upper01, upper23);
}

// Returns where in a table the lower or the upper halves of bytes are found: 16 times the byte's place in its row's four, plus the pattern.
static inline __m512i places_of(__m512i fours, int half) {
    const __m512i pattern = half == 0 ? fours : _mm512_srli_epi16(fours, 4);
    return _mm512_ternarylogic_epi64(pattern, _mm512_set1_epi8(15), _mm512_set1_epi32(0x30201000), 0xea); // (a & b) | c
}

// Adds to the sums of a set of rows, of lower and upper bytes, what their bytes select in a table.
static inline void add_table(const sum_table & table, const __m512i (&places)[SET], __m512i (&sums)[SET][2]) {
    __m512i lower = _mm512_load_si512(table.lower), upper = _mm512_load_si512(table.upper);
    __asm__("" : "+v"(lower), "+v"(upper)); // The compiler would load them for each block.
    UNROLLED
    for (int b = 0; b < SET; b++) {
        dot_i32x16(sums[b][0], _mm512_permutexvar_epi8(places[b], lower), _mm512_set1_epi8(1));
        dot_i32x16(sums[b][1], _mm512_permutexvar_epi8(places[b], upper), _mm512_set1_epi8(1));
    }
}

namespace {

// The sums of a set of rows of signs and T rows of q.
template <int T>
struct set_sums {
    __m512i           value[T][SET][2];
    const sum_table * rest[T]; // the next ones

    explicit set_sums(const row_tables & tables) {
        UNROLLED
        for (int t = 0; t < T; t++) {
            rest[t] = tables.rest + tables.rows[t].rest;
            UNROLLED
            for (int b = 0; b < SET; b++) {
                value[t][b][0] = value[t][b][1] = _mm512_setzero_si512();
            }
        }
    }

    // Adds what 16 bytes of each row select in the tables of step k.
    template <bool ALL_ROWS, bool ALL_BYTES>
    inline void add(const sign_rows & rows, __mmask16 there, const row_tables & tables, int64_t k, step_requests & requests) {
        __m512i fours[SET][4];
        UNROLLED
        for (int b = 0; b < SET; b++) {
            transpose_rows<ALL_ROWS, ALL_BYTES>(rows, b * BLOCK, there, fours[b]);
        }
        UNROLLED
        for (int i = 0; i < STEP_TABLES; i++) {
            requests.ask();
            __m512i places[SET];
            UNROLLED
            for (int b = 0; b < SET; b++) {
                places[b] = places_of(fours[b][i / 2], i % 2);
            }
            UNROLLED
            for (int t = 0; t < T; t++) {
                add_table(tables.step[tables.rows[t].step + k][i], places, value[t]);
            }
        }
        UNROLLED
        for (int t = 0; t < T; t++) {
            const int large = tables.large[tables.rows[t].step + k];
            if (large != 0) {
                UNROLLED
                for (int i = 0; i < STEP_TABLES; i++) {
                    if (large >> i & 1) {
                        const __m512i places[SET] = { places_of(fours[0][i / 2], i % 2), places_of(fours[1][i / 2], i % 2) };
                        add_table(*rest[t]++, places, value[t]);
                    }
                }
            }
        }
    }
};

} // namespace

// Sets out[t*ld + i] to -sum q - 2 M + 2 T of a set of rows, or of those of its rows that are there.
template <int T, bool ALL_ROWS>
static inline void multiply_set(const sign_rows & rows, const row_tables & tables, const struct dqrelo_act * act, int64_t n, int32_t * out,
                                int64_t ld, sign_requests & signs, struct dqrelo_ahead & after) {
    set_sums<T>   sums(tables);
    step_requests requests = { signs, after, 0, (uintptr_t) rows.row_bytes };
    for (int64_t k = 0; k * STEP_COLUMNS < n; k++) {
        const int64_t   j    = k * STEP_COLUMNS;
        const sign_rows step = { rows.sign + j / 8, rows.row_bytes, rows.n_i };

        // Each fourth of a line's steps brings a fourth of the rows' next lines on. After the last line these are of the next rows.
        const int64_t line = j / 8 / 64 * 64 + 64, quarter = j / 8 % 64 / STEP_BYTES * (SET * BLOCK / 4);
        requests.near = (uintptr_t) rows.sign + (uintptr_t) (line < rows.row_bytes ? line : SET * BLOCK * rows.row_bytes) +
                        (uintptr_t) (quarter * rows.row_bytes);
        if (n - j >= STEP_COLUMNS) {
            sums.template add<ALL_ROWS, true>(step, 0xffff, tables, k, requests);
        } else {
            sums.template add<ALL_ROWS, false>(step, (__mmask16) ((1u << (n - j) / 8) - 1), tables, k, requests);
        }
    }
    UNROLLED
    for (int t = 0; t < T; t++) {
        const __m512i first = _mm512_set1_epi32(-2 * tables.rows[t].negative - act[t].sum);
        UNROLLED
        for (int b = 0; b < SET; b++) {
            const __m512i found = _mm512_add_epi32(sums.value[t][b][0], _mm512_slli_epi32(sums.value[t][b][1], 8));
            _mm512_mask_storeu_epi32(out + t * ld + b * BLOCK, columns_m16(b * BLOCK, rows.n_i),
                                     _mm512_add_epi32(first, _mm512_slli_epi32(found, 1)));
        }
    }
}

template <int T>
static void multiply_tiles(const struct dqrelo_sign_tile * tiles, int n_tiles, const row_tables & tables, const struct dqrelo_act * act,
                           int t0, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    sign_requests       signs(tiles, n_tiles, n / 8);
    struct dqrelo_ahead after = *ahead; // A copy may stay in registers.
    signs.skip(SET * BLOCK * (n / 8) + 2048);
    for (int k = 0; k < n_tiles; k++) {
        sign_rows rows = { tiles[k].sign, n / 8, tiles[k].n_i };
        int32_t * out  = tiles[k].out + t0 * ld;
        for (; rows.n_i > 0; rows.n_i -= SET * BLOCK) {
            if (rows.n_i >= SET * BLOCK) {
                multiply_set<T, true>(rows, tables, act + t0, n, out, ld, signs, after);
            } else {
                multiply_set<T, false>(rows, tables, act + t0, n, out, ld, signs, after);
            }
            rows.sign += SET * BLOCK * rows.row_bytes;
            out += SET * BLOCK;
        }
    }
    *ahead = after;
}

int64_t tables_bytes_avx512vbmi(int64_t /* n */) {
    return (int64_t) sizeof(row_tables);
}

void make_tables_avx512vbmi(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act) {
    row_tables & all = *(row_tables *) tables;
    all.clear();
    if (all.add(0, q, n)) {
        act->tables = tables;
    }
}

int sign_dots_avx512vbmi(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                         const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    if (n_t == 1 && act->tables) {
        multiply_tiles<1>(tiles, n_tiles, *(const row_tables *) act->tables, act, 0, n, ld, ahead);
        return 1;
    }
    int done = 0;
    while (done < n_t) {
        row_tables tables;
        int        n_rows = 0;
        tables.clear();
        while (n_rows < MOST_ROWS && done + n_rows < n_t && tables.add(n_rows, q + (done + n_rows) * q_stride, n)) {
            n_rows++;
        }
        switch (n_rows) {
            case 0: return done;
            case 1: multiply_tiles<1>(tiles, n_tiles, tables, act, done, n, ld, ahead); break;
            case 2: multiply_tiles<2>(tiles, n_tiles, tables, act, done, n, ld, ahead); break;
            case 3: multiply_tiles<3>(tiles, n_tiles, tables, act, done, n, ld, ahead); break;
        }
        done += n_rows;
    }
    return done;
}
