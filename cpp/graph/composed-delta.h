// composed-delta.h: what the operator DQRELO adds (dqrelo-op.h), for rows of one delta, from ordinary ggml ops.
#pragma once

#include "memory/composed-pack.h"
#include "dqrelo-op.h"

namespace dqrelo {

// D_hat as the form applies it to rows x F32 [n_in, ...], which carry the request's scale, with ids as for the operator. Returns F32
// [n_out, ...]:
//   MATMUL     of x's ne[1..3]; a stack's matrices go with x's axis 2, as in ggml_mul_mat
//   MATMUL_ID  [n_out, n_used, n_tokens]
//   MUL        of x's shape
//   ROWS       [n_in, ids' shape], x is not read
//   ADD        with ids [n_in, ids' shape]; without D_hat itself, F32 [n_in, n_out, n_mat], to be broadcast; x is not read
ggml_tensor * composed_delta(ggml_context * ctx, dqrelo_form form, const composed_weight & w, ggml_tensor * x, ggml_tensor * ids);

// Returns the whole of D_hat, F32 [n_in, n_out, n_mat].
ggml_tensor * composed_whole(ggml_context * ctx, const composed_weight & w);

} // namespace dqrelo
