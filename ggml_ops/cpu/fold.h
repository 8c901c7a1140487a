// fold.h: the base's product with the signs folded in, for many rows of one delta: (W + s sum_p r_p S_p) x.
//
// A prompt of n rows pays for the signs n times when they are multiplied with the activation, but once when they are added to W. So pieces
// of W are dequantised into a tile in F32 that stays in a cache, the signs are added to them, and all rows are multiplied with the tile:
//
//            n_in                                FOLD_COLUMNS
//      +-------------+                            +------+
//      |   ######    |  n_i rows of W   =>   n_i  |  F32 |  + s * (signs, or all of D_hat)   x n_rows rows of x
//      |             |                            +------+
//      +-------------+
//
// What is left of the delta, factors and sign factors, is added afterwards as without the fold (entry.h). Over F16 and F32 the activation
// is not rounded for W and the planes, over other types it and the tile become integers of 13 bits, where ggml rounds it to 8: the result
// is the more exact one either way. It needs no ggml at link time.
#pragma once

#include "entry.h"

#include <stddef.h>

// The base's weight, a matrix of n_out rows.
struct dqrelo_base {
    const uint8_t * data;
    int64_t         row_bytes; // from one row to the next
    enum ggml_type  type;
    int64_t         block_values;
    int64_t         block_bytes;
    void (*to_float)(const void * src, float * out, int64_t n); // of ggml; for types that dqrelo_kernels::to_float does not know
    // Sets out to n blocks of row i, which has n_blocks, from the first one on, where W is in another layout (repacked.h); else NULL.
    void (*restore)(enum ggml_type type, const void * data, int64_t n_blocks, int64_t i, int64_t first, int64_t n, void * out);
};

// Whether there is something to fold. A delta of factors alone, as an adapter is, leaves the base's product to ggml, and so is rounded as
// ggml's own adapters are.
static inline bool dqrelo_entry_folds(const struct dqrelo_entry * e) {
    return e->n_planes > 0 || e->dense != nullptr || e->entries != nullptr;
}

// How many columns lie in the tile at once: a multiple of the blocks of all types. Each sum is made piece by piece, so this is a part of
// the definition of a result: it depends on the row's length, and on nothing else.
#define DQRELO_FOLD_COLUMNS 2048

// How many rows of W lie in the tile, and how many values it has: one row more for a dense or sparse part. Rows are a cache line further
// apart than they are long, so that they do not meet in one set of a cache.
#define DQRELO_FOLD_TILE_I 64
#define DQRELO_FOLD_STRIDE (DQRELO_FOLD_COLUMNS + 16)
#define DQRELO_FOLD_TILE ((DQRELO_FOLD_TILE_I + 1) * DQRELO_FOLD_STRIDE)

static_assert(DQRELO_FOLD_COLUMNS == DQRELO_I16_COLUMNS, "a row of the tile has one step");

// Whether the tile and x become integers of 16 bits (kernels.h). Of these types ggml rounds x to fewer bits than that, and of the others to
// no fewer.
static inline bool dqrelo_fold_is_i16(const struct dqrelo_kernels * kernels, enum ggml_type type) {
    return kernels->products_i16 != nullptr && type != GGML_TYPE_F32 && type != GGML_TYPE_F16;
}

// The same of decoded sign factors, whose error is a share of what they add. Where the base is F32, or not known, they are as exact as
// that.
static inline bool dqrelo_decoded_is_i16(const struct dqrelo_kernels * kernels, enum ggml_type type) {
    return kernels->products_i16 != nullptr && type != GGML_TYPE_F32;
}

// Sets output features i0 <= i < i1 of all rows of the group to (W + s * (planes, or dense or sparse part)) x. The group's entry has one
// matrix.
void dqrelo_fold_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_base * base, const struct dqrelo_group * group, float s,
                       int64_t i0, int64_t i1, float * memory);
