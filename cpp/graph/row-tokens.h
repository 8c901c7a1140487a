// row-tokens.h: which token of the batch a row of a graph tensor belongs to.
//
// Deltas are chosen per token. To put them onto a node, the graph pass must know which token each of the node's rows is for. That is
// carried from the graph's inputs through every op; it is never guessed from shapes, since the number of tokens may equal the number of
// heads, of experts or of outputs.
//
// The relation is a stride an axis, as nb is for bytes. A row, which is axis 0, is for one token where stride[0] is 0. These are the
// strides of some nodes with n_tokens tokens, of which n_outputs have outputs:
//
//   inp_tokens                                // [n_tokens]                       { 1, 0, 0, 0 }
//   x   = get_rows(tok_embd, inp_tokens)      // [n_embd, n_tokens]               { 0, 1, 0, 0 }
//   q   = mul_mat(wq, x)                      // [n_embd, n_tokens]               { 0, 1, 0, 0 }
//   q   = reshape_3d(q)                       // [n_embd_head, n_head, n_tokens]  { 0, 0, 1, 0 }
//   q   = permute(q, 0, 2, 1, 3)              // [n_embd_head, n_tokens, n_head]  { 0, 1, 0, 0 }
//   kq  = mul_mat(k, q)                       // [n_kv, n_tokens, n_head]         { 0, 1, 0, 0 }
//   kqv = mul_mat(v, kq)                      // [n_embd_head, n_tokens, n_head]  { 0, 1, 0, 0 }
//   cur = cont_2d(permute(kqv, 0, 2, 1, 3))   // [n_embd, n_tokens]               { 0, 1, 0, 0 }
//   cur = get_rows(cur, inp_out_ids)          // [n_embd, n_outputs]              { 0, 1, 0, 0 }, of the selected tokens
//   moe = mul_mat_id(up_exps, x_3d, ids)      // [n_ff, n_used, n_tokens]         { 0, 0, 1, 0 }
//   x_t = cont(transpose(x))                  // [n_tokens, n_embd]               { 1, 0, 0, 0 }, rows of many tokens
#pragma once

#include "ggml.h"

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

struct llm_graph_params;

namespace dqrelo {

// Element (i0, i1, i2, i3) of the tensor belongs to token  sum_d i_d * stride[d]  of `tokens`.
struct row_tokens {
    // F32 [2, n] or [2, n, 2], as the op takes it. NULL means that the rows belong to no token (weights, masks, caches).
    ggml_tensor * tokens    = nullptr;
    int32_t       stride[4] = { 0, 0, 0, 0 };
    // False means that some rows belong to tokens, but which is not known.
    bool known = true;

    bool none() const { return known && tokens == nullptr; }
};

class row_token_map {
public:
    // Starts from the graph's inputs. `tokens` holds the deltas of the ubatch's tokens, F32 [2, n_tokens, 2]; tensors made on the way
    // (those of selected rows) are built in `ctx`.
    row_token_map(const llm_graph_params & params, ggml_context * ctx, ggml_tensor * tokens);

    // Must be called for every node of the graph in its order.
    void visit(ggml_tensor * node);

    row_tokens of(const ggml_tensor * tensor) const;

    // Returns the tokens [2, n] that ids [n] select of tokens [2, n_tokens, 1 or 2].
    static ggml_tensor * select(ggml_context * ctx, ggml_tensor * tokens, ggml_tensor * ids);

private:
    row_tokens derive(ggml_tensor * node);
    row_tokens derive_get_rows(const ggml_tensor * node);

    ggml_context *                                         ctx;
    std::unordered_map<const ggml_tensor *, row_tokens>    rows;     // Has the tensors whose rows belong to tokens.
    std::unordered_map<const ggml_tensor *, ggml_tensor *> selected; // Maps ids to the tokens that they select.
};

} // namespace dqrelo
