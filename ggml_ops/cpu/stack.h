// stack.h: the matrices of an entry that is a stack (experts, heads).
#pragma once

#include "dqrelo-op.h"
#include "factor-types.h"

static inline DQRELO_DEVICE int64_t dqrelo_sparse_blocks(int64_t n_in) {
    return (n_in + DQRELO_SPARSE_BLOCK - 1) / DQRELO_SPARSE_BLOCK;
}

static inline DQRELO_DEVICE const void * dqrelo_skip_bytes(const void * data, int64_t n_bytes) {
    return data ? (const uint8_t *) data + n_bytes : nullptr;
}

// Returns matrix m of a stack as an entry of its own.
static inline DQRELO_DEVICE struct dqrelo_entry dqrelo_entry_matrix(const struct dqrelo_entry * e, int64_t m) {
    struct dqrelo_entry one = *e;
    one.n_mat               = 1;
    for (int p = 0; p < e->n_planes; p++) {
        one.sign[p]  = e->sign[p] + m * (e->n_out * (e->n_in / 8));
        one.scale[p] = e->scale[p] + m * ((e->scale_per_row >> p) & 1 ? e->n_out : 1);
    }
    one.cscale = e->cscale ? e->cscale + m * e->n_in : nullptr;
    one.u      = dqrelo_skip_bytes(e->u, m * e->n_out * dqrelo_type_bytes((enum ggml_type) e->type_u, e->rank));
    one.v      = dqrelo_skip_bytes(e->v, m * e->rank * dqrelo_type_bytes((enum ggml_type) e->type_v, e->n_in));
    one.vsign  = e->vsign ? e->vsign + m * e->n_codes * (e->n_in / 8) : nullptr;
    one.vscale = dqrelo_skip_bytes(e->vscale, m * dqrelo_type_bytes(GGML_TYPE_BF16, e->n_codes));
    one.usign  = e->usign ? e->usign + m * e->n_out * (e->n_codes / 8) : nullptr;
    one.uscale = dqrelo_skip_bytes(e->uscale, m * dqrelo_type_bytes(GGML_TYPE_BF16, e->n_codes));
    one.start  = e->start ? e->start + m * e->n_out : nullptr;
    one.mask   = e->mask ? e->mask + m * (e->n_out * (e->n_in / 8)) : nullptr;
    one.count  = e->count ? e->count + m * (e->n_out * dqrelo_sparse_blocks(e->n_in)) : nullptr;
    one.escale = e->escale ? e->escale + m * e->n_out : nullptr;
    one.dense  = dqrelo_skip_bytes(e->dense, m * e->n_out * dqrelo_type_bytes((enum ggml_type) e->type_dense, e->n_in));
    return one;
}
