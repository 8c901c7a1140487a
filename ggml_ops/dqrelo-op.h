// dqrelo-op.h: the ggml operator DQRELO, which adds the deltas of many fine-tunes onto the output of a base op.
//
// A context has some active deltas, which are numbered. For every row t of the output, whose token has the delta of index k and the request
// scale s:
//
//   MATMUL     dst_t = y_t + s * ( sum_p r_p . (S_p (c . x_t)) + U (V x_t) )    y = W x,  x is the activation
//   MATMUL_ID  the same with matrix ids_t of a stack                             y = mul_mat_id(W, x, ids)  (experts)
//   ROWS       dst_t = y_t + s * D_hat[ids_t]                                    y = get_rows(W, ids)       (embeddings)
//   MUL        dst_t = y_t + s * (x_t * D_hat)                                   y = x * w                  (norm weights)
//   ADD        dst_t = y_t + s * D_hat                                           y = x + b                  (biases)
//              with ids, dst_t = y_t + s * D_hat[ids_t]                          y = add_id(x, b, ids)
//
// D_hat is sign planes plus factors plus sign factors, each of which may be absent, or one dense array, or sparse: values of some elements,
// the entries, and zeros. Sign factors, A B, add
//
//   MATMUL     A (B (c . x)), with B and A sums of sign planes of which each row of B and each column of A has a scale of its own; what
//              B gives is quantised as x is, so that the products with A are sums of integers too
//   otherwise  A B c to D_hat
//
// A weight of three dimensions is a stack of matrices, each with a D_hat of its own:
//
//   MATMUL     row (i1, i2, i3) of y uses matrix i2 / (ne2 / n_mat), as ggml_mul_mat broadcasts (y has ne2 matrices of rows)
//   MUL, ADD   row (i1, i2, i3) of y takes row i1 % n_out of matrix i2 % n_mat, as ggml broadcasts; ADD with ids takes row ids(i1, i2)
//
// So ADD on a weight itself (y = W, one token) is the weight merged with its delta.
//
// Rows with delta index -1, and rows whose delta has no entry for this weight, are copied unchanged.
// The paper is arXiv:2604.16940, Eqs. 7-15; the notation is that of docs/format.md, section 1.
#pragma once

#include "ggml.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DQRELO_MAX_PLANES 4
#define DQRELO_MAX_CODE_PLANES 8
#define DQRELO_MAX_CODES_A_SIDE 4 // codes of sign factors, times the smaller side of the matrix: work memory is planned for them
#define DQRELO_SPARSE_BLOCK 256   // columns in a block of the lists that say where entries lie

enum dqrelo_form {
    DQRELO_FORM_MATMUL    = 0,
    DQRELO_FORM_ROWS      = 1,
    DQRELO_FORM_MUL       = 2,
    DQRELO_FORM_ADD       = 3,
    DQRELO_FORM_MATMUL_ID = 4,
};

// One weight of one delta, as it lies in the delta file (mapped, or copied to a device). All pointers are in the memory of the
// backend that runs the op. A zeroed entry means that the delta does not change this weight.
//
// The pointers are to the first of n_mat matrices. Every array has one part a matrix, each right behind the one before: sign n_out * n_in/8
// bytes, scale 1 or n_out values, cscale n_in values, u n_out rows, v rank rows, vsign n_codes * n_in/8 bytes, vscale n_codes values, usign
// n_out * n_codes/8 bytes, uscale n_codes values, dense n_out rows, mask n_out * n_in/8 bytes, count n_out * n_blocks bytes, start and
// escale n_out values. The values of entries, and their columns, lie matrix after matrix, row after row, by ascending column; start counts
// them from the first one of all matrices.
//
// On CPUs signs may lie in another sequence, in the same memory (cpu/transposed-signs.h).
struct dqrelo_entry {
    const uint8_t * sign[DQRELO_MAX_PLANES];  // (n_out, n_in) bits, row-major, LSB first; a row is n_in/8 bytes
    const float *   scale[DQRELO_MAX_PLANES]; // [1] or [n_out]
    const float *   cscale;                   // [n_in] or NULL
    const void *    u;                        // (n_out, rank), rows of type_u; NULL when rank is 0
    const void *    v;                        // (rank, n_in),  rows of type_v; NULL when rank is 0
    const void *    dense;                    // a whole delta in type_dense, or NULL
    const uint8_t * vsign;                    // (n_codes, n_in) bits as sign; NULL when n_codes is 0, as the next three
    const void *    vscale;                   // BF16 [n_codes]
    const uint8_t * usign;                    // (n_out, n_codes) bits; a row is n_codes/8 bytes
    const void *    uscale;                   // BF16 [n_codes]
    const void *    entries;                  // values of type_entries; NULL where the weight is not sparse, as the next five
    const int32_t * start;                    // [n_out] the first entry of each row
    const uint8_t * mask;                     // (n_out, n_in) bits as sign: where entries lie; or NULL, and count and column are there
    const uint8_t * count;                    // (n_out, n_blocks) how many lie in each block of DQRELO_SPARSE_BLOCK columns, or NULL
    const uint8_t * column;                   // of each entry, inside its block
    const float *   escale;                   // [n_out] what the row's entries are multiplied with; NULL where type_entries is not I8
    int64_t         n_in;                     // ne[0] of the weight
    int64_t         n_out;                    // ne[1] of the weight
    int64_t         n_mat;                    // ne[2] * ne[3] of the weight: 1, or the size of a stack
    int32_t         n_planes;
    int32_t         rank;                       // at most min(n_in, n_out): work memory is planned for that
    int32_t         type_u, type_v, type_dense; // enum ggml_type: F32, F16, BF16, Q8_0, Q4_0; dense F32, F16
    int32_t         type_entries;               // F16, BF16; or I8, whose bytes are the upper ones of F16
    int32_t         scale_per_row;              // bit p: plane p has a scale per row
    // Of sign factors: plane q covers rows 0 <= k < plane_ranks[q] of B, in descending order; their codes lie plane after plane.
    int32_t plane_ranks[DQRELO_MAX_CODE_PLANES]; // the first at most min(n_in, n_out)
    int32_t n_codes;    // the sum of plane_ranks, a multiple of 8; at most DQRELO_MAX_CODES_A_SIDE * min(n_in, n_out)
    int32_t transposed; // 1: rows of sign, vsign and usign are transposed; only where the CPU's kernels take them so
};

// Builds the op. No data is read.
//   y       F32 [n_out, ...]: the output of the base op
//   x       what the base op read, F32
//             MATMUL      [n_in, ...] with y's ne[1] to ne[3]
//             MATMUL_ID   [n_in, 1 or n_used, n_tokens] for y [n_out, n_used, n_tokens]
//             MUL         y's shape
//             ROWS, ADD   not read; y itself may be given
//   ids     I32, may be a view; NULL where there are none
//             ROWS        rows of D_hat, y's ne[1] to ne[3]
//             MATMUL_ID   matrices, [n_used, n_tokens]
//             ADD         rows of D_hat, [n_used, n_tokens], or NULL
//           An id outside its range counts as the nearest one inside.
//   table   I8 [sizeof(dqrelo_entry) * n_deltas]: the entries of this weight, by delta index; lies in the backend's memory and may change
//           between runs
//   tokens  F32 [2, n_tokens]: {delta index or -1, request scale} of each token;
//           or F32 [2, n_tokens, 2], with a second plane from ggml_dqrelo_sort_tokens
//   stride  row (i1, i2, i3) of y is for token i1*stride[0] + i2*stride[1] + i3*stride[2];
//           stride[0] is 0 in MATMUL_ID, because all experts of a token are of one delta
// Returns F32 of y's shape. GGML_ASSERTs on shapes: callers decide support beforehand.
GGML_API struct ggml_tensor * ggml_dqrelo(struct ggml_context * ctx, enum dqrelo_form form, struct ggml_tensor * y, struct ggml_tensor * x,
                                          struct ggml_tensor * ids, struct ggml_tensor * table, struct ggml_tensor * tokens,
                                          const int32_t stride[3]);

// Does the same, but makes an existing node `dst` (of y's shape and type) the op. Consumers of dst then see the delta.
GGML_API void ggml_dqrelo_set(struct ggml_tensor * dst, enum dqrelo_form form, struct ggml_tensor * y, struct ggml_tensor * x,
                              struct ggml_tensor * ids, struct ggml_tensor * table, struct ggml_tensor * tokens, const int32_t stride[3]);

// A token's delta index plus ggml_dqrelo_length(n) says that its sequence has n tokens in the batch: how a token's result is rounded may
// depend on its own sequence, but on no other one. An implementation need not care: the index is the whole part of the number.
#define DQRELO_FOLD_ROWS 32 // tokens in a step of the length
GGML_API float ggml_dqrelo_length(int64_t n_tokens);

// Lets a MATMUL or MATMUL_ID op compute the base's product itself: dst = W x + the delta, and y is no longer a source. With that the signs
// can be added to W once for many rows of one delta, those of long sequences (ggml_dqrelo_long_tokens), instead of being multiplied
// with each row. The CPU has it, and CUDA for MATMUL; other backends take ops with y.
//   w       W, [n_in, n_out], or [n_in, n_out, n_mat] of MATMUL_ID; in the backend's memory, in ggml's own layout; on the CPU of a type
//           that ggml can dequantise, or repacked, if dqrelo_can_restore, and for MATMUL_ID of one that ggml multiplies one row with one
//           (F32, F16, BF16, Q8_0); on CUDA F32, F16, BF16, Q8_0 or Q4_0
// dst has at most DQRELO_FOLD_MAX_ROWS rows; those of MATMUL are matrices, as is x.
#define DQRELO_FOLD_MAX_ROWS (1 << 24)
GGML_API void ggml_dqrelo_fold(struct ggml_tensor * dst, struct ggml_tensor * w);

// Returns how many tokens in the batch make a sequence long: DQRELO_FOLD_ROWS, or for experts as many more as leave n_each of its rows for
// each of n_mat matrices, were they shared out evenly. A token has n_used rows. They are folded from DQRELO_FOLD_EXPERT_ROWS each on.
#define DQRELO_FOLD_EXPERT_ROWS 12
GGML_API int64_t ggml_dqrelo_long_tokens(int64_t n_each, int64_t n_mat, int64_t n_used);

// Returns whether a sequence whose tokens have this number (delta index and length) has at least n tokens in the batch.
GGML_API bool ggml_dqrelo_is_long(float token, int64_t n);

// Returns W of an op that computes the base's product, or NULL.
GGML_API struct ggml_tensor * ggml_dqrelo_base_weight(const struct ggml_tensor * node);

// Fills in the second plane of the tokens [2, n_tokens, 2] from their first: {token, delta index or -1} sorted by delta index, those
// without a delta last. With it, rows are grouped by delta once for all ops of a graph, where an implementation would else sort them in
// each op. One that needs no such help ignores it.
GGML_API void ggml_dqrelo_sort_tokens(float * tokens, int64_t n_tokens);

GGML_API enum dqrelo_form ggml_dqrelo_form(const struct ggml_tensor * node);
GGML_API const int32_t *  ggml_dqrelo_stride(const struct ggml_tensor * node); // [3]

#ifdef __cplusplus
}
#endif
