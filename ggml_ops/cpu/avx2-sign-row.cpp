// avx2-sign-row.cpp: products of sign planes and one row of q for AVX2, by tables of partial sums (avx2-tables.h).
//
// Nibbles are looked up for this row only, so they stay in registers. Instructions for 256 signs, counted in GCC 12's code:
//
//   32.5       to split and look up transposed signs (6 vpshufb, each with a load of its tables, 8 additions, 4 shifts), for a prefetch
//              and loops; 2 more where something else is asked for beside the signs
//   8.5        to transpose 16 rows of signs that are not
//   984 / R    to make tables for R rows of signs, those of all planes
//   0.7        to load and store the sums

#include "avx2-tables.h"
#include "sign-runs.h"

// Where tables are made in a call, they are of so many chunks of columns, because a stack is small. Signs that are looked up in segments of
// a row take up to 1.25 times as long as whole rows (Zen 5).
static constexpr int64_t SEGMENT_CHUNKS  = 32;
static constexpr int64_t SEGMENT_COLUMNS = SEGMENT_CHUNKS * CHUNK_COLUMNS;

// What memory is asked for: the signs from `next` on, which go on to `end` and then with the next run, as many lines as are looked up
// meanwhile, and what the caller reads after the signs, from `ahead` on, in steps that spread it evenly. All go to the second cache,
// because the first one is full of tables.
struct requests {
    uintptr_t   next;
    uintptr_t   end;
    uintptr_t   step; // 0 where no run is left
    uintptr_t   ahead;
    uintptr_t   ahead_step;
    sign_runs * runs;
};

// Goes on with the next run, or says that there is none. A run that begins where the last one ends has been asked for as far as `next`.
static __attribute__((noinline)) void begin_run(requests & r) {
    const sign_run run = r.runs->next();
    if (run.begin < run.end) {
        r.next = run.begin == r.end ? r.next : run.begin;
        r.end  = run.end;
    } else {
        r.step = 0;
        r.end  = UINTPTR_MAX;
    }
}

// It is not called where sums are in registers, which a call would save.
static inline void begin_runs(requests & r) {
    while (r.next >= r.end) {
        begin_run(r);
    }
}

static void pass_over(requests & r, int64_t n_bytes) {
    begin_run(r);
    while (r.step > 0 && n_bytes >= (int64_t) (r.end - r.next)) {
        n_bytes -= (int64_t) (r.end - r.next);
        r.next = r.end;
        begin_run(r);
    }
    r.next += r.step > 0 ? (uintptr_t) n_bytes : 0;
}

template <bool ASKS_AHEAD>
static inline void ask(requests & r) {
    prefetch_lines<64>(r.next);
    r.next += r.step;
    if (ASKS_AHEAD) {
        prefetch_lines<64>(r.ahead);
        r.ahead += r.ahead_step;
    }
}

namespace {

// The columns of a row from j0 on that are looked up before the next block of signs, in which tables, and the sums of |q_j| of each
// SUM_COLUMNS of them.
struct segment {
    int64_t              j0, n_columns;
    const chunk_tables * chunks;
    const int32_t *      magnitude;
};

struct segment_tables {
    chunk_tables chunks[SEGMENT_CHUNKS];
    int32_t      magnitude[SEGMENT_CHUNKS / SUM_CHUNKS];
};

} // namespace

static inline __m256i look_up_pair(const __m256i * tables, __m256i low, __m256i high) {
    return _mm256_add_epi8(_mm256_shuffle_epi8(tables[0], low), _mm256_shuffle_epi8(tables[1], high));
}

// Returns how many of the eight pairs of bytes in each half of a chunk there are to be looked up, where `left` columns begin with it.
static inline int count_pairs(int64_t left) {
    return left >= CHUNK_COLUMNS / 2 ? 8 : (int) ((left + 15) / 16);
}

// Adds to the sums of 16 rows what two vectors of their bytes select in the tables from `step` on.
static inline void add_bytes_of(__m256i (&both)[3], __m256i (&odd)[3], const chunk_tables & tables, int step, __m256i v0, __m256i v1,
                                __m256i mask) {
    __m256i low[2], high[2];
    split_nibbles(low[0], high[0], v0, mask);
    split_nibbles(low[1], high[1], v1, mask);
    add_bytes(both[0], odd[0], look_up_pair(tables.digit[0] + step, low[0], high[0]));
    add_bytes(both[0], odd[0], look_up_pair(tables.digit[0] + step + 2, low[1], high[1]));
    UNROLLED
    for (int d = 1; d < 3; d++) {
        add_bytes(both[d], odd[d],
                  _mm256_add_epi8(look_up_pair(tables.digit[d] + step, low[0], high[0]),
                                  look_up_pair(tables.digit[d] + step + 2, low[1], high[1])));
    }
}

// Adds to the sums of 16 rows what n vectors of transposed bytes, which take(b) gives, select.
template <bool ASKS_AHEAD, typename F>
static inline __attribute__((always_inline)) void add_transposed(requests &           r, __m256i (&both)[3], __m256i (&odd)[3],
                                                                 const chunk_tables & tables, int n, F && take) {
    __m256i mask = _mm256_set1_epi8(15);
    __asm__("" : "+x"(mask)); // It is to be in a register.
    for (int b = 0; b < n; b += 2) {
        ask<ASKS_AHEAD>(r);
        add_bytes_of(both, odd, tables, 2 * b, take(b), take(b + 1), mask);
    }
}

// Adds to the sums of 16 rows what the first n_pairs pairs of bytes in both halves of a chunk of their signs select.
template <bool ASKS_AHEAD>
static inline void add_chunk(requests & r, __m256i (&both)[3], __m256i (&odd)[3], const chunk_tables & tables, const uint8_t * sign,
                             int64_t row_bytes, int n_pairs) {
    __m256i v[8], rows[2][8]; // the even rows, and the odd ones
    for (int parity = 0; parity < 2; parity++) {
        transpose_rows(v, sign + parity * row_bytes, row_bytes);
        UNROLLED
        for (int k = 0; k < 8; k++) {
            rows[parity][k] = v[k];
        }
    }
    __m256i mask = _mm256_set1_epi8(15);
    __asm__("" : "+m"(rows), "+x"(mask)); // The rows are to be in memory, and the mask in a register.
    for (int k = 0; k < n_pairs; k++) {
        ask<ASKS_AHEAD>(r);
        add_bytes_of(both, odd, tables, 4 * k, _mm256_unpacklo_epi8(rows[0][k], rows[1][k]), _mm256_unpackhi_epi8(rows[0][k], rows[1][k]),
                     mask);
    }
}

// Calls add(both, odd) with the sums of group g in registers.
template <typename F>
static inline void with_sums(digit_sums (&sums)[3], int g, F && add) {
    __m256i both[3], odd[3];
    UNROLLED
    for (int d = 0; d < 3; d++) {
        both[d] = sums[d].both[g];
        odd[d]  = sums[d].odd[g];
    }
    add(both, odd);
    UNROLLED
    for (int d = 0; d < 3; d++) {
        sums[d].both[g] = both[d];
        sums[d].odd[g]  = odd[d];
    }
}

// Adds to the sums of a block of rows what whole chunks c to c + n_chunks - 1 of a piece of their signs select: of groups that are
// transposed.
template <bool ASKS_AHEAD>
static __attribute__((noinline)) void add_transposed_chunks(requests & all, digit_sums (&sums)[3], const sign_piece & piece, int n_groups,
                                                            int c, int n_chunks, const chunk_tables * tables) {
    requests r = all; // A copy may stay in registers.
    for (int g = 0; g < n_groups; g++) {
        const uint8_t * chunk = piece.chunk(g, c);
        begin_runs(r);
        with_sums(sums, g, [&](__m256i(&both)[3], __m256i(&odd)[3]) {
            for (int u = 0; u < n_chunks; u++, chunk += DQRELO_GROUP_ROWS * CHUNK_BYTES) {
                add_transposed<ASKS_AHEAD>(r, both, odd, tables[c + u], CHUNK_BYTES / 2, [&](int b) { return bytes_of_chunk(chunk, b); });
            }
        });
    }
    all = r;
}

// The same of a chunk that has n_bytes of each row only.
template <bool ASKS_AHEAD>
static __attribute__((noinline)) void add_transposed_last(requests & all, digit_sums (&sums)[3], const sign_piece & piece, int n_groups,
                                                          int c, int n_bytes, const chunk_tables * tables) {
    requests  r = all;
    const int n = n_bytes < CHUNK_BYTES / 2 ? n_bytes : CHUNK_BYTES / 2;
    for (int g = 0; g < n_groups; g++) {
        const uint8_t * chunk = piece.chunk(g, c);
        begin_runs(r);
        with_sums(sums, g, [&](__m256i(&both)[3], __m256i(&odd)[3]) {
            add_transposed<ASKS_AHEAD>(r, both, odd, tables[c], n, [&](int b) { return bytes_of_last_chunk(chunk, b, n_bytes); });
        });
    }
    all = r;
}

// The same of groups g0 to n_groups - 1, as the file has them.
template <bool ASKS_AHEAD>
static __attribute__((noinline)) void add_unit(requests & all, digit_sums (&sums)[3], const sign_piece & piece, int g0, int n_groups, int c,
                                               const chunk_tables * tables) {
    alignas(32) unit_copy copy;
    requests              r    = all;
    const sign_unit       unit = unit_of(piece, 16 * n_groups, c, copy);
    for (int g = g0; g < n_groups; g++) {
        begin_runs(r);
        with_sums(sums, g, [&](__m256i(&both)[3], __m256i(&odd)[3]) {
            for (int u = 0; u < unit.n_chunks; u++) {
                add_chunk<ASKS_AHEAD>(r, both, odd, tables[c + u], unit.sign + 16 * g * unit.row_bytes + u * CHUNK_BYTES, unit.row_bytes,
                                      count_pairs(piece.n_columns - (c + u) * CHUNK_COLUMNS));
            }
        });
    }
    all = r;
}

template <bool ASKS_AHEAD>
static void add_piece(requests & r, digit_sums (&sums)[3], const sign_piece & piece, const chunk_tables * tables) {
    const int n_groups     = piece.n_i < BLOCK_ROWS ? (piece.n_i + 15) / 16 : GROUPS;
    const int n_transposed = piece.is_transposed(n_groups - 1) ? n_groups : piece.tile->transposed ? n_groups - 1 : 0;
    for (int c = 0; c < chunks_of(piece.n_columns); c += UNIT_CHUNKS) {
        const int n_chunks = unit_chunks(piece, c), n_bytes = piece.chunk_bytes(c + n_chunks - 1);
        const int n_whole = n_bytes < CHUNK_BYTES ? n_chunks - 1 : n_chunks;
        add_transposed_chunks<ASKS_AHEAD>(r, sums, piece, n_transposed, c, n_whole, tables);
        if (n_whole < n_chunks) {
            add_transposed_last<ASKS_AHEAD>(r, sums, piece, n_transposed, c + n_whole, n_bytes, tables);
        }
        if (n_transposed < n_groups) {
            add_unit<ASKS_AHEAD>(r, sums, piece, n_transposed, n_groups, c, tables);
        }
    }
}

// Returns in how large steps `ahead` is asked for while tiles of signs are looked up: all of it, where a line a step is enough.
static uintptr_t ahead_step(const struct dqrelo_ahead & ahead, const struct dqrelo_sign_tile * tiles, int n_tiles, int64_t n) {
    const uintptr_t n_bytes = ahead.next < ahead.end ? ahead.end - ahead.next : 0;
    uintptr_t       n_steps = 0;
    for (int k = 0; k < n_tiles; k++) {
        n_steps += (uintptr_t) ((tiles[k].n_i + BLOCK_ROWS - 1) / BLOCK_ROWS * chunks_of(n)) * (8 * GROUPS);
    }
    return n_bytes == 0 ? 0 : n_bytes / 64 >= n_steps ? 64 : (n_bytes + n_steps - 1) / n_steps;
}

static int64_t sums_of(int64_t n) {
    return (n + SUM_COLUMNS - 1) / SUM_COLUMNS;
}

// Returns how many of n columns are summed up from column j on.
static int64_t count_sums(int64_t n, int64_t j) {
    return n - j < SUM_COLUMNS ? n - j : SUM_COLUMNS;
}

// Makes what n columns of q are looked up in.
static void make_columns(chunk_tables * chunks, int32_t * magnitude, const int8_t * q, int64_t n) {
    memset(magnitude, 0, (size_t) sums_of(n) * sizeof(magnitude[0]));
    for (int64_t j = 0; j < n; j += SUM_COLUMNS) {
        make_row_tables(chunks + j / CHUNK_COLUMNS, q + 2 * j, count_sums(n, j), &magnitude[j / SUM_COLUMNS]);
    }
}

// Tables of a whole row are those of its chunks, and behind them the magnitudes.
static const int32_t * magnitude_of(const void * tables, int64_t n) {
    return (const int32_t *) ((const chunk_tables *) tables + chunks_of(n));
}

int64_t tables_bytes_avx2(int64_t n) {
    return chunks_of(n) * (int64_t) sizeof(chunk_tables) + sums_of(n) * (int64_t) sizeof(int32_t);
}

void make_tables_avx2(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act) {
    make_columns((chunk_tables *) tables, (int32_t *) magnitude_of(tables, n), q, n);
    act->tables = tables;
}

// Returns how many rows of a tile, from row i on, are a block, or the part of one that the tile has, as they lie in memory.
static int block_rows(const struct dqrelo_sign_tile & tile, int i) {
    const int n_block = tile.transposed ? BLOCK_ROWS - (int) ((tile.row + i) % BLOCK_ROWS) : BLOCK_ROWS;
    return tile.n_i - i < n_block ? tile.n_i - i : n_block;
}

// Sets, or adds to, the products of n_i rows of a tile, a block or less, from row i on what a segment gives.
static void multiply_block(requests & r, const segment & columns, const struct dqrelo_sign_tile & tile, int i, int n_i, int64_t n) {
    for (int64_t j = 0; j < columns.n_columns; j += SUM_COLUMNS) {
        digit_sums       sums[3];
        const sign_piece piece = {
            &tile, i, tile.transposed ? n_i : tile.n_i - i, n / 8, (columns.j0 + j) / 8, count_sums(columns.n_columns, j)
        };
        memset(sums, 0, sizeof(sums));
        if (r.ahead_step > 0) {
            add_piece<true>(r, sums, piece, columns.chunks + j / CHUNK_COLUMNS);
        } else {
            add_piece<false>(r, sums, piece, columns.chunks + j / CHUNK_COLUMNS);
        }
        store_sums(sums, columns.magnitude[j / SUM_COLUMNS], n_i, columns.j0 + j > 0, tile.out + i);
    }
}

static void multiply_segment(requests & r, const segment & columns, const struct dqrelo_sign_tile * tiles, int n_tiles, int64_t n) {
    for (int k = 0; k < n_tiles; k++) {
        for (int i = 0, n_i; i < tiles[k].n_i; i += n_i) {
            n_i = block_rows(tiles[k], i);
            multiply_block(r, columns, tiles[k], i, n_i, n);
        }
    }
}

// Tables that are not there yet are made once for all tiles.
void sign_dots_row_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, const void * tables, int64_t n,
                        struct dqrelo_ahead * ahead) {
    const int64_t n_segment = tables ? n : SEGMENT_COLUMNS;
    sign_runs     runs(tiles, n_tiles, n, n_segment);
    requests      r = { 0, 0, 64, ahead->next, ahead_step(*ahead, tiles, n_tiles, n), &runs };
    pass_over(r, runs.bytes_ahead());
    segment_tables own;
    for (int64_t j0 = 0; j0 < n; j0 += n_segment) {
        const int64_t n_columns = n - j0 < n_segment ? n - j0 : n_segment;
        if (tables) {
            multiply_segment(r, { j0, n_columns, (const chunk_tables *) tables, magnitude_of(tables, n) }, tiles, n_tiles, n);
        } else {
            make_columns(own.chunks, own.magnitude, q + 2 * j0, n_columns);
            multiply_segment(r, { j0, n_columns, own.chunks, own.magnitude }, tiles, n_tiles, n);
        }
    }
    ahead->next = r.ahead < ahead->end ? r.ahead : ahead->end;
}
