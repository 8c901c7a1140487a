// decoded-codes.h: sign factors written out, for many rows of one delta.
//
// Signs are multiplied with a row plane by plane, and a row of B, or a column of A, has several planes. A prompt of n rows pays for each of
// them n times when they are multiplied with the activation, but once when they are added up. So pieces of B, and then of A, are decoded
// into a tile in F32 that stays in a cache, and all rows are multiplied with the tile:
//
//            n_in                                           plane_ranks[0]
//      +-------------+                                      +----+
//   64 |   ######    |  of B, times c   x n_rows rows       | ## |  64 of A   x n_rows rows of z
//      |             |  of x: z                             |    |
//      +-------------+                                      +----+
//
// Where the group has steps for z, tiles, x and z become integers (kernels.h). It needs no ggml at link time.
#pragma once

#include "entry.h"

// From so many planes to a row of B on, a product with the decoded row takes less time than one with each plane (docs/operator.md).
#define DQRELO_DECODED_PLANES 2

static inline bool dqrelo_entry_decodes(const struct dqrelo_entry * e) {
    return e->n_codes > 0 && e->n_codes >= DQRELO_DECODED_PLANES * e->plane_ranks[0];
}

// Computes values k0 <= k < k1 of s * B (c . x) for all rows of the group, into bx. `memory` has a tile of fold.h.
void dqrelo_decoded_codes(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t k0, int64_t k1, float * memory);

// Makes integers of what B gave for row t of the group, in its place, where products with A are those of integers.
void dqrelo_decoded_quantize(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t t);

// Adds A bx to output features i0 <= i < i1 of all rows of the group.
void dqrelo_decoded_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * group, int64_t i0, int64_t i1, float * memory);
