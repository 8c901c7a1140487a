// composed.h: puts deltas onto the nodes of a graph as ordinary ggml ops, for devices without the operator DQRELO.
//
// What is added to a node y = mul_mat(W, x) of n_rows rows, where delta i of the plan has n of them, and S, U, V are its D_hat:
//
//   one delta on all rows (all_rows)
//     cx   = mul(x, cscale)                              // [n_in, n_rows]
//     d    = scale(mul_mat(S, cx), alpha)                // [n_out, n_rows]   of each plane
//     d    = add(d, mul_mat(U, mul_mat(V, x)))           // [n_out, n_rows]
//     y    = add(base, d)                                // [n_out, n_rows]
//
//   several deltas, or rows without one (own_rows, scattered)
//     sum  = fill(base, 0)                               // [n_out, n_rows]
//     xi   = get_rows(x, rows_i)                         // [n_in, n]         made once for all weights that read x
//     xi   = mul(xi, request_scales_i)                   // [n_in, n]         where one of them is not 1
//     d    = (as above, of xi)                           // [n_out, n]
//     d    = add(d, get_rows(sum, rows_i))               // [n_out, n]        where rows have blends, from the second delta on
//     sum  = set_rows(sum, d, rows_i)                    // [n_out, n_rows]   for each delta
//     y    = add(base, sum)                              // [n_out, n_rows]
//
//   rows that cannot be taken out (all_rows, for each delta)
//     xi   = mul(x, multipliers_i)                       // [n_in, n_rows]    0 in rows of others
//     y    = add(base, sum of (as above, of xi))         // [n_out, n_rows]
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

// Which row of the plan a row (i1, i2, i3) of a node is: i1*stride[1] + i2*stride[2] + i3*stride[3]. With `one_delta` all rows are of the
// plan's only delta.
struct composed_layout {
    row_kind kind      = ROWS_TOKENS;
    int32_t  stride[4] = { 0, 0, 0, 0 };
    bool     one_delta = false;
};

class composed_graph {
public:
    // D_hat of a weight under an active delta, or nullptr if that does not change it.
    using finder = std::function<const composed_weight *(int32_t delta_index, const ggml_tensor * weight)>;

    // Nodes are made in `ctx`. At most MAX_NODES for a read and a delta, and as many again for a read.
    static constexpr int MAX_NODES = 64;
    composed_graph(ggml_context * ctx, const row_plan & plan, composed_inputs & inputs, finder find) :
        ctx(ctx), plan(plan), inputs(inputs), find(std::move(find)) {}

    // Returns whether some row of that kind has a delta that changes the weight.
    bool changes(const ggml_tensor * weight, row_kind kind) const { return !deltas_of(weight, kind).empty(); }

    // Makes read.node the sum of `base`, a node of the same shape, and the deltas of its rows, of which there are some. x is the
    // activation.
    void attach(const weight_read & read, const composed_layout & layout, ggml_tensor * base, ggml_tensor * x);

    // Returns weight + s D_hat, where s is the request scale, for ubatches of one delta.
    ggml_tensor * merged(ggml_tensor * weight);

private:
    struct delta_of_read {
        size_t                  i; // Numbers the delta in the plan.
        const composed_weight * weight;
    };

    std::vector<delta_of_read> deltas_of(const ggml_tensor * weight, row_kind kind) const;

    ggml_tensor * contiguous(ggml_tensor * t);
    ggml_tensor * multipliers_like(const ggml_tensor * t, size_t i, const composed_layout & layout);
    ggml_tensor * all_rows(const weight_read & read, const composed_layout & layout, const delta_of_read & delta, ggml_tensor * x);
    ggml_tensor * gathered(ggml_tensor * t, size_t i, row_kind kind, int first, bool scaled);
    ggml_tensor * own_rows(const weight_read & read, const composed_layout & layout, int first, const delta_of_read & delta,
                           ggml_tensor * x);
    ggml_tensor * scattered(const weight_read & read, const composed_layout & layout, int first, const std::vector<delta_of_read> & deltas,
                            ggml_tensor * base, ggml_tensor * x);

    ggml_context *    ctx;
    const row_plan &  plan;
    composed_inputs & inputs;
    finder            find;

    // These are shared by all weights that one activation meets.
    std::unordered_map<const ggml_tensor *, ggml_tensor *>                copies;
    std::map<std::tuple<const ggml_tensor *, size_t, int>, ggml_tensor *> selected; // Keyed by activation, delta and axis.
    std::map<std::pair<const ggml_tensor *, size_t>, ggml_tensor *>       multiplied;
};

} // namespace dqrelo
