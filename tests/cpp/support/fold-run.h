// fold-run.h: runs fold cases, and what a graph without the fold gives.
#pragma once

#include "check.h"
#include "fold-cases.h"
#include "transposed-entry.h"

#include "ggml-cpu.h"

#include <cstring>
#include <string>
#include <vector>

inline void run(fold_case & f, int n_threads, bool transposed = false) {
    ggml_context * ctx   = ggml_init({ (size_t) 256 << 20, nullptr, false });
    ggml_tensor *  dst   = f.build(ctx);
    const auto     signs = transposed ? transpose_table(dst) : decltype(transpose_table(dst)){};
    ggml_cgraph *  graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, dst);
    ggml_graph_compute_with_ctx(ctx, graph, n_threads);
    f.c.out.assign((const float *) dst->data, (const float *) dst->data + ggml_nelements(dst));
    ggml_free(ctx);
}

inline void check_case(const std::string & name, fold_case & f) {
    check::begin(name.c_str());
    run(f, 1);
    CHECK(f.matches());
    const std::vector<float> one         = f.c.out;
    const auto               check_again = [&](int n_threads, bool transposed) {
        run(f, n_threads, transposed);
        CHECK(memcmp(one.data(), f.c.out.data(), one.size() * sizeof(float)) == 0);
    };
    check_again(2, false);
    check_again(4, false);
    for (int n_threads = 1; n_threads < 4 && dqrelo_transposes_signs(); n_threads += 2) {
        check_again(n_threads, true);
    }
}

// What a graph without the fold gives: ggml's product, then the op.
inline std::vector<float> two_nodes(const fold_case & f) {
    ggml_context * ctx = ggml_init({ (size_t) 64 << 20, nullptr, false });
    ggml_tensor *  x   = make_f32(ctx, { f.c.n_in, f.c.x_rows(), f.c.ne[2], 1 }, f.c.x, false);
    ggml_tensor *  y =
        f.c.form == DQRELO_FORM_MATMUL_ID ? ggml_mul_mat_id(ctx, f.weight(ctx), x, f.c.make_ids(ctx)) : ggml_mul_mat(ctx, f.weight(ctx), x);
    ggml_cgraph * g = ggml_new_graph(ctx);
    ggml_build_forward_expand(g, y);
    ggml_graph_compute_with_ctx(ctx, g, 2);
    op_case two = f.c;
    two.y.assign((const float *) y->data, (const float *) y->data + ggml_nelements(y));
    ggml_tensor * node = two.build(ctx);
    ggml_cgraph * h    = ggml_new_graph(ctx);
    ggml_build_forward_expand(h, node);
    ggml_graph_compute_with_ctx(ctx, h, 2);
    const std::vector<float> out((const float *) node->data, (const float *) node->data + ggml_nelements(node));
    ggml_free(ctx);
    return out;
}

// Rows that are not folded have each bit of two nodes, wherever they are beside folded ones: of the base, of a short sequence, and two
// neighbours.
inline void check_rows_beside_folded_ones(const std::string & name, fold_case & f) {
    const kinds k(f.c.n_in, f.c.ne[0]);
    f.c.entries = { &k.planes, &k.scaled };
    for (int64_t n : { 33, 41, 64, 100 }) {
        check::begin((name + "/rows=" + std::to_string(n)).c_str());
        for (int64_t at = 0; at < n; at += n == 41 ? 1 : 7) {
            std::vector<token_delta> tokens        = all_of(0, n);
            tokens[(size_t) at]                    = { -1, 1.0f };
            tokens[(size_t) (at * 5 % n)]          = { 1, 1.0f, 0 };
            tokens[(size_t) ((at + 1) % n)].length = 0;
            f.set_tokens(tokens);
            run(f, 2);
            const std::vector<float> two   = two_nodes(f);
            const size_t             n_out = (size_t) f.c.ne[0];
            for (int64_t r = 0; r < n; r++) {
                CHECK(f.is_folded(r) ||
                      memcmp(f.c.out.data() + r * (int64_t) n_out, two.data() + r * (int64_t) n_out, n_out * sizeof(float)) == 0);
            }
            CHECK(at > 0 || f.matches());
        }
    }
}

// The same of experts.
inline void check_experts_beside_folded_ones(const std::string & name, fold_case & f) {
    check::begin(name.c_str());
    const size_t      n_out = (size_t) f.c.ne[0];
    const stack_kinds k(f.c.n_in, f.c.ne[0], f.n_mat);
    f.c.stacks = k.all();
    f.set_tokens(mixed());
    run(f, 2);
    const std::vector<float> two      = two_nodes(f);
    int64_t                  n_folded = 0;
    for (int64_t r = 0; r < f.c.n_rows(); r++) {
        const size_t at = (size_t) r * n_out;
        CHECK(f.is_folded(r) || memcmp(f.c.out.data() + at, two.data() + at, n_out * sizeof(float)) == 0);
        n_folded += f.is_folded(r) ? 1 : 0;
    }
    CHECK(n_folded > 50 && n_folded < f.c.n_rows() - 50);
    f.set_tokens(mixed_tokens(40));
    f.c.stacks = { k.stacks[0].get(), k.stacks[1].get(), nullptr };
    run(f, 2);
    CHECK(f.c.out == two_nodes(f));
}
