// composed.h: puts deltas onto the nodes of a graph as ordinary ggml ops, for devices without the operator DQRELO.
#pragma once

#include "memory/composed-pack.h"
#include "graph/composed-rows.h"
#include "graph/weight-read.h"

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace dqrelo {

// Which row of the plan a row (i1, i2, i3) of a node is: i1*stride[1] + i2*stride[2] + i3*stride[3]. With `one_slot` all rows are of the
// plan's only slot.
struct composed_layout {
    row_kind kind      = ROWS_TOKENS;
    int32_t  stride[4] = { 0, 0, 0, 0 };
    bool     one_slot  = false;
};

class composed_graph {
public:
    // D_hat of a weight under the delta in a slot, or nullptr if that does not change it.
    using finder = std::function<const composed_weight *(int32_t slot, const ggml_tensor * weight)>;

    // Nodes are made in `ctx`. At most MAX_NODES for a read and a slot, and as many again for a read.
    static constexpr int MAX_NODES = 64;
    composed_graph(ggml_context * ctx, const row_plan & plan, composed_inputs & inputs, finder find) :
        ctx(ctx), plan(plan), inputs(inputs), find(std::move(find)) {}

    // Whether some row of that kind has a delta that changes the weight.
    bool changes(const ggml_tensor * weight, row_kind kind) const { return !slots_of(weight, kind).empty(); }

    // Makes read.node the sum of `base`, a node of the same shape, and the deltas of its rows, of which there are some. x is the
    // activation.
    void attach(const weight_read & read, const composed_layout & layout, ggml_tensor * base, ggml_tensor * x);

    // weight + s D_hat, for ubatches of one slot.
    ggml_tensor * merged(ggml_tensor * weight);

private:
    struct slot_of_read {
        size_t                  i; // in the plan
        const composed_weight * weight;
    };

    std::vector<slot_of_read> slots_of(const ggml_tensor * weight, row_kind kind) const;

    ggml_tensor * contiguous(ggml_tensor * t);
    ggml_tensor * factors_like(const ggml_tensor * t, size_t i, const composed_layout & layout);
    ggml_tensor * all_rows(const weight_read & read, const composed_layout & layout, const slot_of_read & slot, ggml_tensor * x);
    ggml_tensor * gathered(ggml_tensor * t, size_t i, row_kind kind, int first, bool scaled);
    ggml_tensor * own_rows(const weight_read & read, const composed_layout & layout, int first, const slot_of_read & slot, ggml_tensor * x);
    ggml_tensor * scattered(const weight_read & read, const composed_layout & layout, int first, const std::vector<slot_of_read> & slots,
                            ggml_tensor * base, ggml_tensor * x);

    ggml_context *    ctx;
    const row_plan &  plan;
    composed_inputs & inputs;
    finder            find;

    // shared by all weights that one activation meets
    std::unordered_map<const ggml_tensor *, ggml_tensor *>                copies;
    std::map<std::tuple<const ggml_tensor *, size_t, int>, ggml_tensor *> selected; // by activation, slot and axis
    std::map<std::pair<const ggml_tensor *, size_t>, ggml_tensor *>       multiplied;
};

} // namespace dqrelo
