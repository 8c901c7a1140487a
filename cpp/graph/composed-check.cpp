#include "graph/composed-check.h"

#include "context/delta.h"
#include "file/message.h"
#include "graph/weight-usage.h"
#include "memory/placement.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>

namespace dqrelo {

namespace {

// Tensors of the weight, which become leaves of the graph.
uint32_t n_tensors(const composed_weight & w) {
    uint32_t n = (w.cscale ? 1 : 0) + (w.u ? 2 : 0) + (w.a ? 2 : 0) + (w.dense ? 1 : 0);
    for (const auto & plane : w.planes) {
        n += plane.scale ? 2 : 1;
    }
    return n;
}

// Returns a plan in which one delta has every other row, with request scales: the form that needs most ops.
row_plan probe_plan(int64_t n_rows) {
    delta_rows s;
    s.delta_index = 0;
    s.unit        = false;
    for (int64_t i = 0; i < n_rows; i += 2) {
        for (row_kind kind : { ROWS_TOKENS, ROWS_OUTPUTS }) {
            s.rows[kind].push_back((int32_t) i);
            s.request_scales[kind].push_back(0.5f);
        }
    }
    row_plan plan;
    plan.n_rows = { n_rows, n_rows };
    plan.deltas.push_back(std::move(s));
    return plan;
}

struct probe_result {
    std::string lacks;       // Names an op that the device has not, or is empty.
    uint32_t    n_nodes = 0; // Leaves are counted too, as in a scheduler's size.
};

probe_result probe(const dqrelo_context & dctx, const read_shape & shape, const composed_weight & w, ggml_backend_dev_t dev) {
    ggml_context_ptr ctx(ggml_init({ 2 * composed_graph::MAX_NODES * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    weight_read      read;
    read.weight = const_cast<ggml_tensor *>(shape.weight);
    read.form   = shape.form;
    read.node   = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, GGML_MAX_DIMS, shape.node);
    read.x      = shape.x[0] ? ggml_new_tensor(ctx.get(), GGML_TYPE_F32, GGML_MAX_DIMS, shape.x) : nullptr;
    read.ids    = shape.ids[0] ? ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, shape.ids[0], shape.ids[1]) : nullptr;

    int64_t last = 0; // last row of the batch
    for (int d = 1; d < 4; d++) {
        last += (shape.node[d] - 1) * shape.layout.stride[d];
    }
    const row_plan  plan = probe_plan(last + 1);
    composed_inputs inputs(dctx, plan);
    composed_graph  graph(ctx.get(), plan, inputs, [&w](int32_t, const ggml_tensor *) { return &w; });
    ggml_tensor *   base = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, GGML_MAX_DIMS, shape.node);
    if (shape.merged_copy) {
        graph.merged(read.weight);
    } else {
        graph.attach(read, shape.layout, base, read.x);
    }
    probe_result result;
    // The tensors x and ids lie in one piece here, but may have to be copied into one; a blend takes out what it adds to, and adds.
    result.n_nodes = n_tensors(w) + 4;
    const auto ask = [&](ggml_tensor * t) {
        if (result.lacks.empty() && t->op != GGML_OP_NONE && !ggml_backend_dev_supports_op(dev, t)) {
            const ggml_tensor * first = t->src[0];
            result.lacks              = message("%s of %s %s", ggml_op_desc(t), first ? ggml_type_name(first->type) : "",
                                                shape_text(first ? first->ne : t->ne).c_str());
        }
    };
    ask(read.node); // This node adds the delta to the base.
    for (ggml_tensor * t = ggml_get_next_tensor(ctx.get(), base); t; t = ggml_get_next_tensor(ctx.get(), t)) {
        result.n_nodes++;
        ask(t);
    }
    return result;
}

} // namespace

std::string composed_problem(const dqrelo_context & dctx, const graph_usage & usage, const dqrelo_delta & delta, uint32_t & n_nodes) {
    n_nodes = 0;
    for (const auto & copy : delta.copies) {
        const std::string &  name = delta.file->weights()[copy.weight].name;
        const weight_usage * used = usage.find(name);
        if (copy.how != method::composed || !used) {
            continue;
        }
        const ggml_backend_dev_t dev    = device_of(copy.buft);
        uint32_t                 n_most = 0;
        for (const read_shape & shape : used->composed) {
            if (placement_of(shape.weight).buft != copy.buft) {
                continue;
            }
            const probe_result result = probe(dctx, shape, *delta.composed.at(copy.buft)->find(copy.weight), dev);
            if (!result.lacks.empty()) {
                return message("tensor '%s' needs the op %s, which %s has not", name.c_str(), result.lacks.c_str(),
                               ggml_backend_dev_name(dev));
            }
            n_most = std::max(n_most, result.n_nodes);
        }
        n_nodes += n_most * used->n_reads;
    }
    n_nodes += n_nodes > 0 ? composed_graph::MAX_NODES : 0; // The weights share these nodes.
    return "";
}

} // namespace dqrelo
