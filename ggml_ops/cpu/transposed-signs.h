// transposed-signs.h: rows of signs in the sequence in which the kernels for AVX2 look them up.
//
// Those kernels look up one byte of 16 rows at once (avx2-tables.h), but in a file a row lies behind the other. To transpose 16 x 32 bytes
// each time they are read takes a fifth of the instructions, so it is done once, in place, when a delta has been read:
//
//               row_bytes                     chunk c of the group, 512 bytes from 512 c on
//        +---------+---------+---           +-------------------+--------------------+-------------------+---
//   r0   | chunk 0 | chunk 1 |              | byte 0 of r0..r15 | byte 16 of r0..r15 | byte 1 of r0..r15 | byte 17 ...
//   ..   | 32 bytes|         |        =>    +-------------------+--------------------+-------------------+---
//   r15  +---------+---------+---
//
// The last chunk of a row may be shorter; those of its first 16 bytes that have no partner then come last. A group of 16 rows takes the
// memory that its rows took, and rows that make no whole group stay as they are. Groups are counted from the first row of each matrix, and
// in the rows of B of sign factors from the first one of each plane.
#pragma once

#include "dqrelo-op.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DQRELO_GROUP_ROWS 16
#define DQRELO_CHUNK_BYTES 32

// Longer rows are not to be transposed: a group is copied for it.
#define DQRELO_TRANSPOSED_MAX_BYTES 65536

// Returns whether the kernels of this CPU (isa.h) are quicker with transposed signs.
GGML_API bool dqrelo_transposes_signs(void);

// Returns whether no row of signs of an entry is too long.
GGML_API bool dqrelo_can_transpose(const struct dqrelo_entry * e);

// Transposes the groups of a matrix of signs. Throws std::bad_alloc, before it changes anything.
GGML_API void dqrelo_transpose_signs(uint8_t * sign, int64_t n_rows, int64_t row_bytes);

// Calls take(sign, n_rows, row_bytes, data) for each matrix of signs whose groups are counted anew: planes, and A and B of sign factors.
GGML_API void dqrelo_for_each_sign_matrix(const struct dqrelo_entry * e,
                                          void (*take)(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * data), void * data);

// Transposes all matrices of signs of an entry, whose memory is written to, and says so in it.
GGML_API void dqrelo_transpose_entry(struct dqrelo_entry * e);

// Sets out to n_chunks chunks of the rows of a group, from chunk c0 on, in the file's sequence; a row has `stride` bytes there. Behind the
// last byte of a row are zeros.
GGML_API void dqrelo_restore_signs(const uint8_t * group, int64_t row_bytes, int64_t c0, int64_t n_chunks, uint8_t * out, int64_t stride);

#ifdef __cplusplus
}
#endif
