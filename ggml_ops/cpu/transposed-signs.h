// transposed-signs.h: rows of signs in the sequence in which the kernels for AVX2 look them up.
//
// Those kernels look up one byte of 16 rows at once (avx2-tables.h), but in a file a row lies behind the other. To transpose 16 x 32 bytes
// each time they are read takes a fifth of the instructions, so it is done once, in place, when a delta has been read. A group is 16 rows,
// a chunk 32 bytes of each:
//
//        a group of rows                    a chunk of the group, 512 bytes
//        +---------+---------+---           +-------------------+--------------------+-------------------+---
//   r0   | chunk 0 | chunk 1 |              | byte 0 of r0..r15 | byte 16 of r0..r15 | byte 1 of r0..r15 | byte 17 ...
//   ..   | 32 bytes|         |        =>    +-------------------+--------------------+-------------------+---
//   r15  +---------+---------+---
//
// A last chunk that is shorter has those of its first 16 bytes that have no partner at its end. The kernels take 64 rows, four groups, in
// steps of 64 bytes, two chunks: a unit. Units lie one behind the other, so that they read memory as one stream:
//
//        a block of four groups             unit 0, 4096 bytes                            unit 1
//        +----+----+----+----+---           +-------+-------+-------+-------+-----+-------+-------+---
//   g0   | c0 | c1 | c2 | c3 |              | g0 c0 | g0 c1 | g1 c0 | g1 c1 | ... | g3 c1 | g0 c2 | ...
//   ..   |         |         |        =>    +-------+-------+-------+-------+-----+-------+-------+---
//   g3   +----+----+----+----+---
//
// A last unit that is shorter is the rest of each group. The last block of a matrix has fewer groups, and rows that make no whole group
// stay as they are behind it. A block takes the memory that its rows took. Rows are counted from the first one of each matrix, those of all
// planes of B together.
#pragma once

#include "dqrelo-op.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DQRELO_GROUP_ROWS 16
#define DQRELO_BLOCK_ROWS 64
#define DQRELO_CHUNK_BYTES 32
#define DQRELO_UNIT_BYTES 64

// Longer rows are not to be transposed: a block is copied for it.
#define DQRELO_TRANSPOSED_MAX_BYTES 65536

// Returns whether the kernels of this CPU (isa.h) are quicker with transposed signs.
GGML_API bool dqrelo_transposes_signs(void);

// Returns whether no row of signs of an entry is too long.
GGML_API bool dqrelo_can_transpose(const struct dqrelo_entry * e);

// Returns how many rows the block of row i has, whole groups, in a transposed matrix of n_rows.
static inline int64_t dqrelo_block_rows(int64_t i, int64_t n_rows) {
    const int64_t n_left = n_rows - (i & -DQRELO_BLOCK_ROWS);
    return n_left < DQRELO_BLOCK_ROWS ? n_left & -DQRELO_GROUP_ROWS : DQRELO_BLOCK_ROWS;
}

// Returns where, counted from the first byte of a transposed matrix of n_rows, chunk c of the group that begins with row i lies.
static inline int64_t dqrelo_chunk_offset(int64_t i, int64_t n_rows, int64_t row_bytes, int64_t c) {
    const int64_t in_block = i & (DQRELO_BLOCK_ROWS - 1);                 // rows of it before the group
    const int64_t begin    = c * DQRELO_CHUNK_BYTES & -DQRELO_UNIT_BYTES; // of the unit in a row
    const int64_t n_unit   = row_bytes - begin < DQRELO_UNIT_BYTES ? row_bytes - begin : DQRELO_UNIT_BYTES;
    const int64_t in_unit  = DQRELO_GROUP_ROWS * (c * DQRELO_CHUNK_BYTES - begin);
    return (i - in_block) * row_bytes + dqrelo_block_rows(i, n_rows) * begin + in_block * n_unit + in_unit;
}

// Transposes the groups of a matrix of signs. Throws std::bad_alloc, before it changes anything.
GGML_API void dqrelo_transpose_signs(uint8_t * sign, int64_t n_rows, int64_t row_bytes);

// Calls take(sign, n_rows, row_bytes, data) for each matrix of signs: planes, and A and B of sign factors.
GGML_API void dqrelo_for_each_sign_matrix(const struct dqrelo_entry * e,
                                          void (*take)(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * data), void * data);

// Transposes all matrices of signs of an entry, whose memory is written to, and says so in it.
GGML_API void dqrelo_transpose_entry(struct dqrelo_entry * e);

// Sets out to n_chunks chunks, from chunk c0 on, of the group that begins with row i of a transposed matrix, in the file's sequence; a row
// has `stride` bytes there. Behind the last byte of a row are zeros.
GGML_API void dqrelo_restore_signs(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, int64_t i, int64_t c0, int64_t n_chunks,
                                   uint8_t * out, int64_t stride);

#ifdef __cplusplus
}
#endif
