// avx2-signs.cpp: products of sign planes and several rows of q for AVX2, by tables of partial sums (avx2-tables.h).
//
// The signs of 16 rows are kept as nibbles, once for all rows of q. Instructions for 256 signs and a row of q, counted in GCC 12's code:
//
//   20.5         look-ups: 6 vpshufb, 8 additions, 1.5 shifts and 0.5 loads, prefetches and loops
//   6 / T        to split them, for T rows of q; 11 / T with signs that are not transposed
//   984 / R      to make tables for R rows of signs
//    0.3         to store the sums
//
// With tiles of 256 rows of signs that is 26 for eight rows of q.

#include "avx2-tables.h"

static constexpr int MAX_T      = 8; // rows of q at once
static constexpr int MAX_BLOCKS = 4;

// The nibbles of 64 rows of signs; those of rows 16 g to 16 g + 15 are at [step][g].
struct unit_nibbles {
    __m256i at[UNIT_CHUNKS * STEPS][GROUPS];
};

struct workspace {
    chunk_tables tables[SUM_CHUNKS]; // of a segment of columns, row by row of q
    unit_nibbles nibbles;
    digit_sums   sums[MAX_T][MAX_BLOCKS][3];
    int32_t      magnitude[MAX_T]; // sums of |q_j|
    uintptr_t    next;             // the signs that memory is asked for, in steps of `step` bytes
    uintptr_t    step;
};

// Sets at[step][0] to the nibbles of a chunk of 16 rows. There are 16 registers, so the odd rows wait in memory for the even ones.
static inline void chunk_nibbles(__m256i (*at)[GROUPS], const uint8_t * sign, int64_t row_bytes) {
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i       even[8], odd[8];
    transpose_rows(even, sign + row_bytes, row_bytes);
    UNROLLED
    for (int k = 0; k < 8; k++) {
        odd[k] = even[k];
    }
    __asm__("" : "+m"(odd));
    transpose_rows(even, sign, row_bytes);
    UNROLLED
    for (int k = 0; k < 8; k++) {
        split_nibbles(at[4 * k][0], at[4 * k + 1][0], _mm256_unpacklo_epi8(even[k], odd[k]), mask);
        split_nibbles(at[4 * k + 2][0], at[4 * k + 3][0], _mm256_unpackhi_epi8(even[k], odd[k]), mask);
    }
}

// The same of a chunk that was transposed, and has n_bytes of each row.
static inline void transposed_nibbles(__m256i (*at)[GROUPS], const uint8_t * chunk, int n_bytes) {
    const __m256i mask = _mm256_set1_epi8(15);
    if (n_bytes < CHUNK_BYTES) {
        for (int b = 0; b < CHUNK_BYTES / 2; b++) {
            split_nibbles(at[2 * b][0], at[2 * b + 1][0], bytes_of_last_chunk(chunk, b, n_bytes), mask);
        }
        return;
    }
    UNROLLED
    for (int b = 0; b < CHUNK_BYTES / 2; b++) {
        split_nibbles(at[2 * b][0], at[2 * b + 1][0], bytes_of_chunk(chunk, b), mask);
    }
}

// Makes the nibbles of a block's unit that begins with chunk c0 of its columns, and returns how many chunks it has.
static int make_nibbles(unit_nibbles & nibbles, const sign_piece & piece, int c0) {
    alignas(32) unit_copy copy;
    const bool            is_transposed = piece.is_transposed(GROUPS - 1); // Else there are rows that are not.
    const sign_unit       unit = is_transposed ? sign_unit{ nullptr, 0, unit_chunks(piece, c0) } : unit_of(piece, BLOCK_ROWS, c0, copy);
    for (int g = 0; g < GROUPS; g++) {
        for (int c = 0; c < unit.n_chunks; c++) {
            __m256i(*at)[GROUPS] = (__m256i(*)[GROUPS]) & nibbles.at[c * STEPS][g];
            if (piece.is_transposed(g)) {
                transposed_nibbles(at, piece.chunk(g, c0 + c), piece.chunk_bytes(c0 + c));
            } else {
                chunk_nibbles(at, unit.sign + 16 * g * unit.row_bytes + c * CHUNK_BYTES, unit.row_bytes);
            }
        }
    }
    return unit.n_chunks;
}

// Adds what the nibbles of n_chunks chunks select of a digit's tables. Sums of N_ADD bytes of the tables fit in a byte. Each iteration asks
// for the next bytes of signs, so that requests are spread evenly; they go to the second cache, because the first one is full of tables.
template <int N_ADD>
static __attribute__((noinline)) void look_up(workspace & w, digit_sums & sums, const chunk_tables * tables, int k, int n_chunks) {
    __m256i both[GROUPS], odd[GROUPS];
    UNROLLED
    for (int g = 0; g < GROUPS; g++) {
        both[g] = sums.both[g];
        odd[g]  = sums.odd[g];
    }
    uintptr_t       next       = w.next;
    const uintptr_t step       = w.step;
    const __m256i(*at)[GROUPS] = w.nibbles.at;
    for (int c = 0; c < n_chunks; c++) {
        const __m256i * table = tables[c].digit[k];
        for (const __m256i * end = table + STEPS; table < end; table += N_ADD, at += N_ADD, next += step) {
            prefetch_lines<64>(next);
            UNROLLED
            for (int g = 0; g < GROUPS; g++) {
                __m256i v = _mm256_shuffle_epi8(table[0], at[0][g]);
                UNROLLED
                for (int a = 1; a < N_ADD; a++) {
                    v = _mm256_add_epi8(v, _mm256_shuffle_epi8(table[a], at[a][g]));
                }
                add_bytes(both[g], odd[g], v);
            }
        }
    }
    w.next = next;
    UNROLLED
    for (int g = 0; g < GROUPS; g++) {
        sums.both[g] = both[g];
        sums.odd[g]  = odd[g];
    }
}

// Adds a piece's products with n_t rows of q to sums[t][block].
static void add_piece(workspace & w, int block, const sign_piece & piece, int n_t) {
    const int n_chunks = chunks_of(piece.n_columns);
    for (int c = 0; c < n_chunks; c += UNIT_CHUNKS) {
        const int n_unit = make_nibbles(w.nibbles, piece, c);
        for (int t = 0; t < n_t; t++) {
            digit_sums(&sums)[3]        = w.sums[t][block];
            const chunk_tables * tables = w.tables + t * n_chunks + c;
            look_up<2>(w, sums[0], tables, 0, n_unit);
            look_up<4>(w, sums[1], tables, 1, n_unit);
            look_up<4>(w, sums[2], tables, 2, n_unit);
        }
    }
}

// Begins with the requests to memory, in its own order, as far ahead as it takes to read all that lies between: a block of rows where a
// segment has all columns, else the tile.
static void begin_requests(workspace & w, const uint8_t * sign, int n_i, int n_t, int64_t n, int64_t segment) {
    constexpr int64_t MOST  = 320 * 1024; // More would not stay in the second cache.
    const int64_t     ahead = (n <= segment ? BLOCK_ROWS : n_i) * (n / 8);
    // These are integers, because they may lie behind the end of the data, where no pointer may point.
    w.next = (uintptr_t) sign + (uintptr_t) (ahead < MOST ? ahead : MOST);
    w.step = 64 / (uintptr_t) n_t; // A unit has 64 lines, and 64 iterations for each row of q.
}

// Multiplies n_i rows of a tile of signs from row i0 on with n_t <= MAX_T rows of q.
static void sign_dots_tile(workspace & w, const struct dqrelo_sign_tile & tile, int i0, int n_i, const int8_t * q, int64_t q_stride,
                           int n_t, int64_t n, int32_t * out, int64_t ld) {
    const int64_t segment = SUM_CHUNKS / n_t / UNIT_CHUNKS * UNIT_CHUNKS * CHUNK_COLUMNS;
    begin_requests(w, tile.sign + i0 * (n / 8), n_i, n_t, n, segment);
    for (int64_t j0 = 0; j0 < n; j0 += SUM_COLUMNS) {
        const int64_t j1 = n - j0 < SUM_COLUMNS ? n : j0 + SUM_COLUMNS;
        memset(w.sums, 0, (size_t) n_t * sizeof(w.sums[0]));
        memset(w.magnitude, 0, sizeof(w.magnitude));
        for (int64_t j = j0; j < j1; j += segment) {
            const int64_t n_columns = j1 - j < segment ? j1 - j : segment;
            for (int t = 0; t < n_t; t++) {
                make_row_tables(w.tables + t * chunks_of(n_columns), q + t * q_stride + 2 * j, n_columns, &w.magnitude[t]);
            }
            for (int i = 0; i < n_i; i += BLOCK_ROWS) {
                add_piece(w, i / BLOCK_ROWS, { &tile, i0 + i, n_i - i, n / 8, j / 8, n_columns }, n_t);
            }
        }
        for (int t = 0; t < n_t; t++) {
            for (int i = 0; i < n_i; i += BLOCK_ROWS) {
                store_sums(w.sums[t][i / BLOCK_ROWS], w.magnitude[t], n_i - i, j0 > 0, out + t * ld + i);
            }
        }
    }
}

static void sign_dots_rows(workspace & w, const struct dqrelo_sign_tile & tile, const int8_t * q, int64_t q_stride, int n_t, int64_t n,
                           int64_t ld) {
    constexpr int ROWS    = MAX_BLOCKS * BLOCK_ROWS;
    const int     n_parts = (n_t + MAX_T - 1) / MAX_T; // of rows of q, as equal as can be
    for (int k = 0; k < n_parts; k++) {
        const int t0 = n_t * k / n_parts, t1 = n_t * (k + 1) / n_parts;
        for (int i = 0; i < tile.n_i; i += ROWS) {
            sign_dots_tile(w, tile, i, tile.n_i - i < ROWS ? tile.n_i - i : ROWS, q + t0 * q_stride, q_stride, t1 - t0, n,
                           tile.out + t0 * ld + i, ld);
        }
    }
}

void sign_dots_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride, const struct dqrelo_act * act,
                    int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    if (n_t == 1) {
        sign_dots_row_avx2(tiles, n_tiles, q, act->tables, n, ahead);
        return;
    }
    workspace w;
    for (int k = 0; k < n_tiles; k++) {
        sign_dots_rows(w, tiles[k], q, q_stride, n_t, n, ld);
    }
}
