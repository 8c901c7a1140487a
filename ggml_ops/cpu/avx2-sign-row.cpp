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

// Where tables are made in a call, they are of so many chunks of columns, because a stack is small. Signs that are looked up in segments of
// a row take up to 1.25 times as long as whole rows (Zen 5).
static constexpr int64_t SEGMENT_CHUNKS  = 32;
static constexpr int64_t SEGMENT_COLUMNS = SEGMENT_CHUNKS * CHUNK_COLUMNS;

// The signs that memory is asked for: `next`, and what lies behind it, as many lines as are looked up meanwhile. In rows that are not
// transposed it goes on to `end`, where `gap` bytes are left out, and so on in every row. What the caller reads after the signs is asked
// for beside them, from `ahead` on, in steps that spread it evenly. All go to the second cache, because the first one is full of tables.
// These are integers, because they may lie behind the end of the data, where no pointer may point.
struct requests {
    uintptr_t next;
    uintptr_t end;
    uintptr_t gap;
    uintptr_t row_bytes;
    uintptr_t ahead;
    uintptr_t ahead_step;
};

template <bool ASKS_AHEAD>
static inline void ask(requests & r) {
    prefetch_lines<64>(r.next);
    r.next += 64;
    if (r.next >= r.end) {
        r.next += r.gap;
        r.end += r.row_bytes;
    }
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

// The unit that memory is asked for next, in the order in which units of transposed tiles are read in a segment; and behind the last tile,
// those of the rows that follow the first one in its matrix.
class unit_ahead {
public:
    // Begins as far ahead as requests go.
    unit_ahead(const struct dqrelo_sign_tile * tiles, int n_tiles, const segment & columns, int64_t n) :
        tile(tiles),
        last(tiles + n_tiles - 1),
        behind(tiles[0]),
        row_bytes(n / 8),
        begin(columns.j0 / CHUNK_COLUMNS),
        c(begin),
        end(begin + chunks_of(columns.n_columns)) {
        behind.sign += behind.n_i * row_bytes;
        behind.row += behind.n_i;
        behind.n_i             = (int) (columns.j0 + columns.n_columns < n ? 0 : behind.n_rows - behind.row);
        const int64_t distance = (int64_t) prefetch_bytes(dqrelo_asks_cache_1 ? DQRELO_CACHE_1 : DQRELO_CACHE_2);
        for (int64_t asked = 0; asked < distance; pass()) {
            asked += UNIT_BYTES * DQRELO_GROUP_ROWS * n_groups();
        }
    }

    // Goes on to the next unit, or stays where there is none.
    void pass() {
        if (c + UNIT_CHUNKS < end) {
            c += UNIT_CHUNKS;
        } else if (i + BLOCK_ROWS < tile->n_i) {
            c = begin;
            i += BLOCK_ROWS;
        } else if (tile != &behind && (tile < last || behind.n_i > 0)) {
            c    = begin;
            i    = 0;
            tile = tile < last ? tile + 1 : &behind;
        }
    }

    // Returns where the signs of group g in it lie, or if it has fewer groups, others of them.
    uintptr_t group(int g) const {
        const int64_t at = i + g % n_groups() * DQRELO_GROUP_ROWS;
        if (at + DQRELO_GROUP_ROWS > tile->n_i) { // the rows left over
            return (uintptr_t) tile->sign + (uintptr_t) (at * row_bytes + (tile->n_i - at) * CHUNK_BYTES * c);
        }
        return (uintptr_t) (tile->sign - tile->row * row_bytes + dqrelo_chunk_offset(tile->row + at, tile->n_rows, row_bytes, c));
    }

private:
    const struct dqrelo_sign_tile *tile, *last;
    struct dqrelo_sign_tile        behind;
    int64_t                        row_bytes;
    int64_t                        begin, c, end; // chunks of a row
    int                            i = 0;         // row of the tile

    int n_groups() const { return tile->n_i - i < BLOCK_ROWS ? (tile->n_i - i + DQRELO_GROUP_ROWS - 1) / DQRELO_GROUP_ROWS : GROUPS; }
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

// Begins to ask for what lies where group g does in a unit that is read later.
static inline void ask_from(requests & r, const unit_ahead & later, int g) {
    r.next = later.group(g);
    r.end  = UINTPTR_MAX;
}

// Adds to the sums of a block of rows what whole chunks c to c + n_chunks - 1 of a piece of their signs select: of groups that are
// transposed.
template <bool ASKS_AHEAD>
static __attribute__((noinline)) void add_transposed_chunks(requests & all, const unit_ahead & later, digit_sums (&sums)[3],
                                                            const sign_piece & piece, int n_groups, int c, int n_chunks,
                                                            const chunk_tables * tables) {
    requests r = all; // A copy may stay in registers.
    for (int g = 0; g < n_groups; g++) {
        const uint8_t * chunk = piece.chunk(g, c);
        ask_from(r, later, g);
        with_sums(sums, g, [&](__m256i(&both)[3], __m256i(&odd)[3]) {
            for (int u = 0; u < n_chunks; u++, chunk += DQRELO_GROUP_ROWS * CHUNK_BYTES) {
                add_transposed<ASKS_AHEAD>(r, both, odd, tables[c + u], CHUNK_BYTES / 2, [&](int b) { return bytes_of_chunk(chunk, b); });
            }
        });
    }
    all = r;
}

// The same of a chunk that has n_bytes of each row only. It asks for what whole chunks of its unit leave.
template <bool ASKS_AHEAD>
static __attribute__((noinline)) void add_transposed_last(requests & all, const unit_ahead & later, digit_sums (&sums)[3],
                                                          const sign_piece & piece, int n_groups, int c, int n_bytes,
                                                          const chunk_tables * tables) {
    requests  r = all;
    const int n = n_bytes < CHUNK_BYTES / 2 ? n_bytes : CHUNK_BYTES / 2;
    for (int g = 0; g < n_groups; g++) {
        const uint8_t * chunk = piece.chunk(g, c);
        ask_from(r, later, g);
        r.next += (uintptr_t) (c % UNIT_CHUNKS * CHUNK_BYTES * DQRELO_GROUP_ROWS);
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
static void add_piece(requests & r, unit_ahead & later, digit_sums (&sums)[3], const sign_piece & piece, const chunk_tables * tables) {
    const int n_groups     = piece.n_i < BLOCK_ROWS ? (piece.n_i + 15) / 16 : GROUPS;
    const int n_transposed = piece.is_transposed(n_groups - 1) ? n_groups : piece.tile->transposed ? n_groups - 1 : 0;
    for (int c = 0; c < chunks_of(piece.n_columns); c += UNIT_CHUNKS) {
        const int n_chunks = unit_chunks(piece, c), n_bytes = piece.chunk_bytes(c + n_chunks - 1);
        const int n_whole = n_bytes < CHUNK_BYTES ? n_chunks - 1 : n_chunks;
        add_transposed_chunks<ASKS_AHEAD>(r, later, sums, piece, n_transposed, c, n_whole, tables);
        if (n_whole < n_chunks) {
            add_transposed_last<ASKS_AHEAD>(r, later, sums, piece, n_transposed, c + n_whole, n_bytes, tables);
        }
        if (n_transposed < n_groups) {
            if (n_transposed > 0) {
                ask_from(r, later, n_transposed);
            }
            add_unit<ASKS_AHEAD>(r, sums, piece, n_transposed, n_groups, c, tables);
        }
        later.pass();
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

// Returns where what comes after the block of tile k's rows from row i on begins, in a segment: the next block, the next
// tile, the first one in the next segment, or what lies behind the first tile.
static uintptr_t block_after(const segment & columns, const struct dqrelo_sign_tile * tiles, int n_tiles, int k, int i, int64_t n) {
    const int64_t j = columns.j0, next = j + columns.n_columns;
    if (i + BLOCK_ROWS < tiles[k].n_i) {
        return (uintptr_t) tiles[k].sign + (uintptr_t) ((i + BLOCK_ROWS) * (n / 8) + j / 8);
    }
    if (k + 1 < n_tiles) {
        return (uintptr_t) tiles[k + 1].sign + (uintptr_t) (j / 8);
    }
    return (uintptr_t) tiles[0].sign + (uintptr_t) (next < n ? next / 8 : tiles[0].n_i * (n / 8));
}

// Each block of rows that are not transposed asks for exactly the next one, in the order in which it lies: lines that are 256 to 1024 bytes
// apart take memory two to four times as long as neighbours (Zen 3).
static void ask_for_block(requests & r, const segment & columns, const struct dqrelo_sign_tile * tiles, int n_tiles, int k, int i,
                          int64_t n) {
    r.next      = block_after(columns, tiles, n_tiles, k, i, n);
    r.end       = r.next + (uintptr_t) (columns.n_columns / 8);
    r.row_bytes = (uintptr_t) (n / 8);
    r.gap       = r.row_bytes - (uintptr_t) (columns.n_columns / 8);
}

// Sets, or adds to, the products of a tile's block of rows from row i on what a segment gives.
static void multiply_block(requests & r, unit_ahead & later, const segment & columns, const struct dqrelo_sign_tile & tile, int i,
                           int64_t n) {
    for (int64_t j = 0; j < columns.n_columns; j += SUM_COLUMNS) {
        digit_sums       sums[3];
        const sign_piece piece = { &tile, i, tile.n_i - i, n / 8, (columns.j0 + j) / 8, count_sums(columns.n_columns, j) };
        memset(sums, 0, sizeof(sums));
        if (r.ahead_step > 0) {
            add_piece<true>(r, later, sums, piece, columns.chunks + j / CHUNK_COLUMNS);
        } else {
            add_piece<false>(r, later, sums, piece, columns.chunks + j / CHUNK_COLUMNS);
        }
        store_sums(sums, columns.magnitude[j / SUM_COLUMNS], piece.n_i, columns.j0 + j > 0, tile.out + i);
    }
}

static void multiply_segment(requests & r, const segment & columns, const struct dqrelo_sign_tile * tiles, int n_tiles, int64_t n) {
    unit_ahead later(tiles, n_tiles, columns, n);
    for (int k = 0; k < n_tiles; k++) {
        for (int i = 0; i < tiles[k].n_i; i += BLOCK_ROWS) {
            ask_for_block(r, columns, tiles, n_tiles, k, i, n);
            multiply_block(r, later, columns, tiles[k], i, n);
        }
    }
}

// Tables that are not there yet are made once for all tiles.
void sign_dots_row_avx2(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, const void * tables, int64_t n,
                        struct dqrelo_ahead * ahead) {
    requests r;
    r.ahead      = ahead->next;
    r.ahead_step = ahead_step(*ahead, tiles, n_tiles, n);
    if (tables) {
        multiply_segment(r, { 0, n, (const chunk_tables *) tables, magnitude_of(tables, n) }, tiles, n_tiles, n);
    } else {
        segment_tables own;
        for (int64_t j0 = 0; j0 < n; j0 += SEGMENT_COLUMNS) {
            const int64_t n_columns = n - j0 < SEGMENT_COLUMNS ? n - j0 : SEGMENT_COLUMNS;
            make_columns(own.chunks, own.magnitude, q + 2 * j0, n_columns);
            multiply_segment(r, { j0, n_columns, own.chunks, own.magnitude }, tiles, n_tiles, n);
        }
    }
    ahead->next = r.ahead < ahead->end ? r.ahead : ahead->end;
}
