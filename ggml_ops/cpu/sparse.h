// sparse.h: rows of a sparse D_hat: written out in F32, and their products with rows of x.
//
// A row's entries are put into a row of zeros, piece by piece, and the pieces are multiplied as any other F32. For a row or two of x the
// zeros are left out, and sums are made in the same order, so that they have the same bits. It needs no ggml at link time.
#pragma once

#include "dqrelo-op.h"
#include "kernels.h"

// Sets out[j] to D_hat(i, j0 + j) for n columns. The entry has one matrix, j0 is a multiple of 128.
void dqrelo_sparse_columns(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i, int64_t j0, int64_t n,
                           float * out);

// How many rows and columns lie in the tile at once: as many rows as the kernels of products take, and a tile that stays in the nearest
// cache. Each sum is made piece by piece, so the columns are a part of the definition of a result.
#define DQRELO_SPARSE_TILE_I 8
#define DQRELO_SPARSE_COLUMNS 1024 // a multiple of DQRELO_SPARSE_BLOCK
#define DQRELO_SPARSE_STRIDE (DQRELO_SPARSE_COLUMNS + 16)
#define DQRELO_SPARSE_TILE (DQRELO_SPARSE_TILE_I * DQRELO_SPARSE_STRIDE)

// Sets out[t*ld + i] to row i0 + i of D_hat times x[t], for n_i rows and n_t <= DQRELO_TILE_T pointers to x. The entry has
// one matrix.
void dqrelo_sparse_dots(const struct dqrelo_kernels * kernels, const struct dqrelo_entry * e, int64_t i0, int n_i, const float * const * x,
                        int n_t, float * out, int64_t ld, float * tile);
