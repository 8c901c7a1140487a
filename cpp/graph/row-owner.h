// row-owner.h: which position of the batch a row of a graph tensor belongs to.
//
// Deltas are chosen per token. To put them onto a node, the graph pass must know which token each of the node's rows is for. That is
// carried from the graph's inputs through every op; it is never guessed from shapes, since the number of tokens may equal the number of
// heads, of experts or of outputs.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

struct llm_graph_params;

namespace dqrelo {

// Element (i0, i1, i2, i3) of the tensor belongs to entry  sum_d i_d * stride[d]  of `owner`.
struct row_owner {
    ggml_tensor * owner = nullptr; // F32 [2, n] or [2, n, 2], as the op takes it; null: rows belong to no token (weights, masks, caches)
    int32_t       stride[4] = { 0, 0, 0, 0 };
    bool          known     = true; // false: some rows belong to tokens, but which is not known

    bool none() const { return known && owner == nullptr; }
};

class row_owners {
public:
    // Starts from the graph's inputs. `tokens` is the owner tensor of the batch, F32 [2, n_tokens, 2]; tensors made on the way (the owners
    // of selected rows) are built in `ctx`.
    row_owners(const llm_graph_params & params, ggml_context * ctx, ggml_tensor * tokens);

    // Must be called for every node of the graph in its order.
    void visit(ggml_tensor * node);

    row_owner of(const ggml_tensor * tensor) const;

private:
    row_owner derive(ggml_tensor * node);
    row_owner derive_get_rows(const ggml_tensor * node);

    ggml_context *                                         ctx;
    std::unordered_map<const ggml_tensor *, row_owner>     owners;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> selected; // ids -> owners of the rows that they select
};

} // namespace dqrelo
