// op-problem.h: products with random weights and deltas, by the base's mul_mat, by the op DQRELO, by ordinary ggml ops, both at once by the
// op that folds the signs into the base, and a plain read of the deltas.
#pragma once

#include "bench.h"

#include "dqrelo-op.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <memory>
#include <numeric>
#include <vector>

namespace bench {

struct delta_kind {
    ggml_type factors       = GGML_TYPE_F16;
    int       n_planes      = 1;
    bool      row_scales    = false;
    bool      column_scales = false;

    std::vector<int> plane_ranks;      // of sign factors, instead of planes and factors
    double           entries  = 0.0;   // share of elements that are entries of a sparse weight, instead of all else; I8 factors mean F8
    bool             has_mask = false; // Its places are a mask, else lists.

    int n_codes() const { return std::accumulate(plane_ranks.begin(), plane_ranks.end(), 0); }
};

struct random_delta {
    weight_bytes u, v;
    // Each item is one plane; q1_0 has the same signs in blocks of 128 with scale 1.
    std::vector<weight_bytes>       sign, q1_0;
    std::vector<std::vector<float>> scale;
    std::vector<float>              cscale;
    weight_bytes                    vsign, vscale, usign, uscale, a, b; // sign factors; a and b decoded as Q8_0
    weight_bytes                    mask, count, column, entries;       // a sparse weight
    std::vector<int32_t>            start;
    std::vector<float>              escale;
    dqrelo_entry                    e = {};
};

enum class method { base, fused, composed, read, folded };

class op_problem {
public:
    op_problem(int64_t n_in, int64_t n_out, ggml_type base_type, const delta_kind & kind);

    // Weights that take turns: more bytes than the caches hold, but two where arithmetic is the limit.
    int     n_weights(int64_t n_rows) const { return n_rows < 64 ? (int) deltas.size() : 2; }
    int64_t delta_bytes() const; // of one weight
    int64_t composed_rank() const { return kind.n_codes() > 0 ? kind.plane_ranks[0] : rank; }
    // ||got - exact|| / ||exact|| of the delta's part of row 0 of the first weight, in F64
    double error(const std::vector<float> & x, const float * got) const;

    int64_t                   n_in, n_out, rank;
    ggml_type                 base_type;
    delta_kind                kind;
    std::vector<random_delta> deltas;
    random_delta              first; // as a file has it; its entry is not used
    std::vector<weight_bytes> base;
    weight_bytes              dense; // the first sparse weight in F16, for all of them
};

// One graph with the products of the weights that take turns.
class run {
public:
    run(const op_problem & p, method m, const std::vector<float> & x, int64_t n_rows, int n_threads);
    run(const run &)             = delete;
    run & operator=(const run &) = delete;
    ~run();

    void          compute() { ggml_graph_compute(graph, &plan); }
    const float * first_row() const { // It is the first row of the first weight's product.
        return (const float *) first->data;
    }

private:
    ggml_tensor * product(const op_problem & p, method m, int k);

    ggml_context *       ctx;
    ggml_cgraph *        graph;
    ggml_cplan           plan;
    std::vector<uint8_t> work;
    ggml_tensor *        x = nullptr, *y = nullptr, *tokens = nullptr, *first = nullptr;
};

} // namespace bench
