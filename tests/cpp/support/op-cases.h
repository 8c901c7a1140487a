// op-cases.h: the shapes and mixtures that every implementation of the op DQRELO is tested with, and what it must give in F64.
// A test defines check_case, which fills a case, runs it and asks matches.
#pragma once

#include "check.h"
#include "op-case.h"

#include <algorithm>
#include <memory>
#include <string>

static void check_case(const std::string & name, op_case & c);

#include "sparse-cases.h"

// Returns what the delta of `entry` adds to row r of the case's output, before the request scale.
static expected_delta expect(const op_case & c, const random_entry & entry, int64_t r) {
    if (c.form == DQRELO_FORM_ROWS) {
        return expect_row(entry, c.id_of(r, entry.e.n_out));
    }
    const float * x = c.x_of(r);
    if (c.is_matmul()) {
        double v_max = 0.0;
        for (int64_t j = 0; j < c.n_in; j++) {
            v_max = std::max(v_max, std::fabs(entry.cscale_at(j) * x[j]));
        }
        return expect_matmul(entry, x, v_max / 32639.0); // Every row here is shorter than 65536.
    }
    const expected_delta row = expect_row(entry, c.ids.empty() ? r % c.ne[1] % entry.e.n_out : c.id_of(r, entry.e.n_out));
    expected_delta       out;
    for (int64_t j = 0; j < c.ne[0]; j++) {
        const double factor = c.form == DQRELO_FORM_MUL ? x[j] : 1.0;
        out.value.push_back(factor * row.value[(size_t) (j % entry.e.n_in)]);
        out.tolerance.push_back(4.0 * U_F32 * std::fabs(out.value.back()) + std::fabs(factor) * row.tolerance[(size_t) (j % entry.e.n_in)]);
    }
    return out;
}

// Every row is y + s * delta within its tolerance; a row without a delta is y, bit for bit.
static bool matches(const op_case & c) {
    for (int64_t r = 0; r < c.n_rows(); r++) {
        const token_delta &  o     = c.token(r);
        const float *        y     = c.y.data() + r * c.ne[0];
        const float *        got   = c.out.data() + r * c.ne[0];
        const random_entry * entry = c.entry_of(r);
        if (entry == nullptr || o.scale == 0.0f) {
            if (memcmp(got, y, (size_t) c.ne[0] * sizeof(float)) != 0) {
                printf("  row %lld is not the base's\n", (long long) r);
                return false;
            }
            continue;
        }
        const expected_delta want = expect(c, *entry, r);
        for (int64_t i = 0; i < c.ne[0]; i++) {
            const double value     = y[i] + o.scale * want.value[(size_t) i];
            const double tolerance = std::fabs(o.scale) * want.tolerance[(size_t) i] +
                                     2.0 * U_F32 * (std::fabs(y[i]) + std::fabs(o.scale * want.value[(size_t) i]));
            if (!(std::fabs(got[i] - value) <= tolerance)) {
                printf("  row %lld, output %lld: got %.9g, expected %.9g within %.3g\n", (long long) r, (long long) i, got[i], value,
                       tolerance);
                return false;
            }
        }
    }
    return true;
}

static void test_matmul_mixed() {
    for (int64_t n_in : { 8, 72, 576, 1000, 4104 }) {
        entry_options o;
        o.n_in           = n_in;
        o.n_out          = 65;
        o.rank           = 5;
        entry_options o1 = o;
        o1.n_planes      = 2;
        o1.rank          = 0;
        o1.cscale        = true;
        o1.scale_per_row = true;
        const random_entry a(o, 1), b(o1, 2);
        for (int64_t n_rows : { 1, 3, 17, 33 }) {
            op_case c;
            c.ne      = { o.n_out, n_rows, 1, 1 };
            c.n_in    = n_in;
            c.tokens  = mixed_tokens(n_rows);
            c.entries = { &a, &b, nullptr };
            c.gaps    = n_rows == 17;
            check_case("matmul/n_in=" + std::to_string(n_in) + "/rows=" + std::to_string(n_rows), c);
        }
    }
}

// Deltas of every kind in one batch, and rows without one: ranks, planes, what a scale belongs to, factor types.
static void test_matmul_kinds() {
    entry_options o;
    o.n_in            = 576;
    o.n_out           = 545;
    entry_options row = o, column = o, both = o, zero = o, large = o, q = o;
    row.rank           = 1;
    row.n_planes       = 2;
    row.scale_per_row  = true;
    column.rank        = 7;
    column.cscale      = true;
    column.type_v      = GGML_TYPE_BF16;
    both.rank          = 33;
    both.n_planes      = 3;
    both.scale_per_row = true;
    both.cscale        = true;
    both.type_u        = GGML_TYPE_F32;
    zero.rank          = 7;
    zero.zero_scale    = true;
    large.rank         = 540;
    q.rank             = 64;
    q.n_planes         = 4;
    q.type_u           = GGML_TYPE_Q4_0;
    q.type_v           = GGML_TYPE_Q8_0;
    const random_entry m(o, 41), r(row, 42), c(column, 43), b(both, 44), z(zero, 45), l(large, 46), f(q, 47);
    for (int64_t n_rows : { 1, 3, 17 }) {
        for (int first = 0; first < (n_rows == 1 ? 7 : 1); first++) { // With one row, each entry comes alone.
            op_case k;
            k.ne      = { o.n_out, n_rows, 1, 1 };
            k.n_in    = o.n_in;
            k.entries = { &m, &r, &c, &b, &z, &l, &f };
            for (int i = 0; i < n_rows; i++) {
                k.tokens.push_back({ (first + i * 5) % 8 == 7 ? -1 : (first + i * 5) % 8, 1.0f - 0.1f * (float) i });
            }
            check_case("matmul/kinds/rows=" + std::to_string(n_rows) + "/first=" + std::to_string(first), k);
        }
    }
}

// Sign factors alone and beside everything else, and factors alone: each in a batch of its own and all in one.
static void test_matmul_sign_factors() {
    entry_options o;
    o.n_in            = 200;
    o.n_out           = 133;
    o.n_planes        = 0;
    o.plane_ranks     = { 8 };
    entry_options two = o, all = o, large = o, factors = o;
    two.plane_ranks   = { 67, 37 };
    two.cscale        = true;
    all.plane_ranks   = { 40, 33, 20, 17, 17, 5, 3, 1 };
    all.n_planes      = 2;
    all.scale_per_row = true;
    all.cscale        = true;
    all.rank          = 7;
    large.plane_ranks = { 133, 133, 133, 129 };
    factors.rank      = 33;
    factors.plane_ranks.clear();
    const random_entry a(o, 81), b(two, 82), c(all, 83), d(large, 84), f(factors, 85);
    for (int64_t n_rows : { 1, 6, 70 }) {
        for (int first = 0; first < (n_rows == 1 ? 5 : 1); first++) { // one row: each of them alone
            op_case k;
            k.ne      = { o.n_out, n_rows, 1, 1 };
            k.n_in    = o.n_in;
            k.entries = { &a, &b, &c, &d, &f };
            k.gaps    = n_rows == 6;
            for (int i = 0; i < n_rows; i++) {
                k.tokens.push_back({ (first + i * 5) % 6 == 5 ? -1 : (first + i * 5) % 6, 1.0f - 0.01f * (float) i });
            }
            check_case("matmul/sign factors/rows=" + std::to_string(n_rows) + "/first=" + std::to_string(first), k);
        }
    }
}

// The same in a stack of experts, as rows of an embedding, and merged.
static void test_sign_factors_of_stacks() {
    entry_options o;
    o.n_in           = 136;
    o.n_out          = 70;
    o.n_planes       = 0;
    o.plane_ranks    = { 35, 21 };
    entry_options o1 = o;
    o1.n_planes      = 1;
    o1.rank          = 5;
    o1.cscale        = true;
    o1.plane_ranks   = { 18, 4, 1, 1 };
    const random_stack a(o, 4, 86), b(o1, 4, 87);
    op_case            c;
    c.stacks = { &a, &b, nullptr };
    c.stride = { 0, 1, 0 };
    for (int64_t n_tokens : { 1, 7, 40 }) {
        c.form   = DQRELO_FORM_MATMUL_ID;
        c.one_x  = n_tokens != 7;
        c.n_in   = o.n_in;
        c.ne     = { o.n_out, 3, n_tokens, 1 };
        c.tokens = mixed_tokens(n_tokens);
        c.ids.clear();
        for (int64_t r = 0; r < c.n_rows(); r++) {
            c.ids.push_back((int32_t) ((r * 7 + r / 3) % 4));
        }
        check_case("matmul_id/sign factors/tokens=" + std::to_string(n_tokens), c);
    }
    op_case whole;
    whole.form   = DQRELO_FORM_ADD;
    whole.ne     = { o.n_in, o.n_out, 4, 1 };
    whole.stride = { 0, 0, 0 };
    whole.stacks = { &a, &b };
    for (int delta : { 0, 1 }) {
        whole.tokens = { { delta, 0.5f } };
        check_case("add/a stack of weights/sign factors/delta=" + std::to_string(delta), whole);
    }
    const random_entry e(o, 88), f(o1, 89);
    op_case            rows;
    rows.form    = DQRELO_FORM_ROWS;
    rows.ne      = { o.n_in, 13, 1, 1 };
    rows.tokens  = mixed_tokens(13);
    rows.entries = { &e, &f, nullptr };
    for (int i = 0; i < 13; i++) {
        rows.ids.push_back(i * 31 % 70);
    }
    check_case("rows/sign factors", rows);
}

static void test_matmul_16_deltas() {
    entry_options o;
    o.n_in = 136;
    o.rank = 9;
    std::vector<std::unique_ptr<random_entry>> deltas;
    op_case                                    c;
    c.ne   = { o.n_out, 50, 1, 1 };
    c.n_in = o.n_in;
    for (uint32_t k = 0; k < 16; k++) {
        deltas.push_back(std::make_unique<random_entry>(o, 100 + k));
        c.entries.push_back(deltas.back().get());
    }
    for (int i = 0; i < 50; i++) {
        c.tokens.push_back({ (i * 7) % 17 - 1, 1.0f + 0.01f * (float) i });
    }
    check_case("matmul/16 deltas in one batch", c);
}

// The q/k norms and experts have tokens on axis 2, Mamba has them over two axes.
static void test_matmul_strides() {
    entry_options o;
    o.rank = 3;
    const random_entry a(o, 5), b(o, 6);
    op_case            c;
    c.entries = { &a, &b, nullptr };
    c.gaps    = true;
    c.ne      = { o.n_out, 3, 7, 2 };
    c.stride  = { 0, 1, 0 };
    c.tokens  = mixed_tokens(7);
    check_case("matmul/stride={0,1,0}", c);
    c.stride = { 1, 3, 21 };
    c.tokens = mixed_tokens(42);
    check_case("matmul/stride={1,3,21}", c);
    c.stride = { 0, 0, 1 };
    c.tokens = mixed_tokens(2);
    check_case("matmul/stride={0,0,1}", c);
    c.stride = { 0, 0, 0 };
    c.tokens = { { 1, 0.25f } };
    check_case("matmul/stride={0,0,0}", c);
}

// A stack of experts: every kind of delta, x with a row a token or a row an expert, ids that repeat and ids that lie apart.
static void test_matmul_id() {
    entry_options o;
    o.n_in           = 136;
    o.n_out          = 70;
    o.rank           = 5;
    entry_options o1 = o;
    o1.n_planes      = 2;
    o1.rank          = 33;
    o1.cscale        = true;
    o1.scale_per_row = true;
    o1.type_u        = GGML_TYPE_F32;
    entry_options o2 = o;
    o2.dense         = true;
    o2.type_dense    = GGML_TYPE_F16;
    entry_options o3 = o;
    o3.n_in          = 64;
    o3.rank          = 32;
    o3.type_u        = GGML_TYPE_Q8_0;
    o3.type_v        = GGML_TYPE_Q4_0;
    const random_stack a(o, 5, 51), b(o1, 5, 52), d(o2, 5, 53), q(o3, 5, 54);
    for (bool one_x : { true, false }) {
        for (int64_t n_tokens : { 1, 5, 40 }) { // 5 are as many as experts.
            op_case c;
            c.form   = DQRELO_FORM_MATMUL_ID;
            c.one_x  = one_x;
            c.n_in   = o.n_in;
            c.ne     = { o.n_out, 3, n_tokens, 1 };
            c.stride = { 0, 1, 0 };
            c.gaps   = n_tokens == 5;
            c.tokens = mixed_tokens(n_tokens);
            for (int64_t r = 0; r < c.n_rows(); r++) {
                c.ids.push_back((int32_t) ((r * 7 + r / 3) % 5));
            }
            const std::string name = std::string("/x=") + (one_x ? "token" : "expert") + "/tokens=" + std::to_string(n_tokens);
            for (const random_stack * second : { &b, &d }) {
                c.stacks = { &a, second, nullptr };
                check_case("matmul_id/" + std::string(second == &d ? "dense" : "signs") + name, c);
            }
            c.n_in   = o3.n_in;
            c.stacks = { &q, &q, nullptr };
            check_case("matmul_id/quantised factors" + name, c);
        }
    }
}

// A matrix a head: MLA. As many tokens as heads, and heads that share a matrix.
static void test_matmul_batched() {
    entry_options o;
    o.n_in           = 72;
    o.rank           = 3;
    entry_options o1 = o;
    o1.cscale        = true;
    const random_stack a(o, 4, 57), b(o1, 4, 58);
    for (int64_t n_head : { 4, 8 }) {
        op_case c;
        c.n_in   = o.n_in;
        c.ne     = { o.n_out, 4, n_head, 1 };
        c.gaps   = true;
        c.tokens = mixed_tokens(4);
        c.stacks = { &a, &b, nullptr };
        check_case("matmul/batched/heads=" + std::to_string(n_head), c);
    }
}

// A ubatch of which no row has an output: the selected rows are none.
static void test_no_rows() {
    const random_entry a({}, 64);
    op_case            c;
    c.entries = { &a };
    for (dqrelo_form form : { DQRELO_FORM_MATMUL, DQRELO_FORM_ADD }) {
        c.form = form;
        c.ne   = { a.e.n_out, 0, 1, 1 };
        check_case("no rows/form=" + std::to_string(form), c);
    }
}

// Biases of experts, whole and as signs.
static void test_add_id() {
    for (bool dense : { true, false }) {
        entry_options o;
        o.dense = dense;
        o.n_in  = 200;
        o.n_out = 6;
        o.rank  = 2;
        const random_entry a(o, 61), b(o, 62);
        op_case            c;
        c.form    = DQRELO_FORM_ADD;
        c.ne      = { 200, 3, 7, 1 };
        c.stride  = { 0, 1, 0 };
        c.tokens  = mixed_tokens(7);
        c.entries = { &a, &b, nullptr };
        c.gaps    = true;
        for (int64_t r = 0; r < c.n_rows(); r++) {
            c.ids.push_back((int32_t) (r * 5 % 6));
        }
        check_case(std::string("add_id/") + (dense ? "dense" : "signs"), c);
    }
}

// ADD on a weight itself: the weight merged with its delta.
static void test_merged_weight() {
    entry_options o;
    o.n_in  = 136;
    o.n_out = 9;
    o.rank  = 4;
    const random_stack a(o, 3, 63);
    op_case            c;
    c.form   = DQRELO_FORM_ADD;
    c.ne     = { 136, 9, 3, 1 };
    c.stride = { 0, 0, 0 };
    c.tokens = { { 0, 0.5f } };
    c.stacks = { &a };
    check_case("add/a stack of weights", c);
}

// What a router that met NaN may give, beside sound ids: nothing outside the stack is read, and other rows are untouched.
static void test_ids_out_of_range() {
    const int32_t odd[] = { -1, INT32_MIN, 6, INT32_MAX, 0x10000 };
    const auto    ids   = [&](op_case & c) {
        c.ids.clear();
        for (int64_t r = 0; r < c.n_rows(); r++) {
            c.ids.push_back(r % 3 == 1 ? odd[r / 3 % 5] : (int32_t) (r * 5 % 6));
        }
    };
    entry_options o;
    o.n_in  = 136;
    o.n_out = 6;
    o.rank  = 2;
    const random_stack a(o, 6, 91);
    const random_entry b(o, 92);
    op_case            c;
    c.form   = DQRELO_FORM_MATMUL_ID;
    c.n_in   = o.n_in;
    c.stacks = { &a, &a, nullptr };
    c.stride = { 0, 1, 0 };
    for (int64_t n_tokens : { 1, 7, 40 }) {
        c.ne     = { o.n_out, 3, n_tokens, 1 };
        c.tokens = mixed_tokens(n_tokens);
        ids(c);
        check_case("ids out of range/matmul_id/tokens=" + std::to_string(n_tokens), c);
    }
    c.stacks.clear();
    c.entries = { &b, &b, nullptr };
    c.form    = DQRELO_FORM_ADD;
    c.ne      = { o.n_in, 3, 7, 1 };
    c.tokens  = mixed_tokens(7);
    ids(c);
    check_case("ids out of range/add_id", c);
    c.form = DQRELO_FORM_ROWS;
    check_case("ids out of range/rows", c);
}

static void test_matmul_dense() {
    entry_options o;
    o.dense = true;
    o.n_in  = 37;
    const random_entry a(o, 7);
    o.type_dense = GGML_TYPE_F16;
    const random_entry b(o, 8);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 9, 1, 1 };
    c.tokens  = mixed_tokens(9);
    c.entries = { &a, &b, nullptr };
    check_case("matmul/dense", c);
}

static void test_rows() {
    for (bool dense : { false, true }) {
        for (int64_t n_embd : { 8, 64, 328, 576 }) {
            entry_options o;
            o.dense          = dense;
            o.n_in           = n_embd;
            o.n_out          = 51;
            o.rank           = 7;
            entry_options o1 = o;
            o1.n_planes      = 3;
            o1.cscale        = true;
            o1.scale_per_row = true;
            o1.type_dense    = GGML_TYPE_F16;
            o1.rank          = n_embd % 32 == 0 ? 64 : 0;
            o1.type_u        = GGML_TYPE_Q8_0;
            o1.type_v        = GGML_TYPE_Q4_0;
            const random_entry a(o, 9), b(o1, 10);
            op_case            c;
            c.form    = DQRELO_FORM_ROWS;
            c.ne      = { n_embd, 13, 2, 1 };
            c.stride  = { 1, 13, 0 };
            c.tokens  = mixed_tokens(26);
            c.entries = { &a, &b, nullptr };
            for (int i = 0; i < 26; i++) {
                c.ids.push_back(i % 5 == 0 ? 50 : (i * 31) % 51);
            }
            check_case(std::string("rows/") + (dense ? "dense" : "signs") + "/n_embd=" + std::to_string(n_embd), c);
        }
    }
}

static void test_elementwise() {
    for (dqrelo_form form : { DQRELO_FORM_MUL, DQRELO_FORM_ADD }) {
        const std::string name = form == DQRELO_FORM_MUL ? "mul" : "add";
        entry_options     o;
        o.dense          = true;
        o.n_in           = 300;
        o.n_out          = 1;
        entry_options o1 = o;
        o1.type_dense    = GGML_TYPE_F16;
        const random_entry a(o, 11), b(o1, 12);
        op_case            c;
        c.form    = form;
        c.ne      = { 300, 10, 1, 1 };
        c.tokens  = mixed_tokens(10);
        c.entries = { &a, &b, nullptr };
        c.gaps    = true;
        check_case(name + "/vector", c);

        // The weight has a vector a head, and tokens are on axis 2.
        o.n_in = o1.n_in = 24;
        o.n_out = o1.n_out = 4;
        const random_entry h(o, 13), k(o1, 14);
        c.ne      = { 24, 8, 5, 1 };
        c.stride  = { 0, 1, 0 };
        c.tokens  = mixed_tokens(5);
        c.entries = { &h, &k, nullptr };
        check_case(name + "/rows broadcast", c);

        o.n_in = 8;
        const random_entry w(o, 15);
        c.entries = { &w, &k, nullptr };
        check_case(name + "/columns broadcast", c);
    }
}

static void test_all_cases() {
    test_matmul_mixed();
    test_matmul_kinds();
    test_matmul_16_deltas();
    test_matmul_sign_factors();
    test_sign_factors_of_stacks();
    test_matmul_strides();
    test_matmul_id();
    test_matmul_batched();
    test_matmul_dense();
    test_sparse();
    test_sparse_stacks();
    test_rows();
    test_elementwise();
    test_no_rows();
    test_add_id();
    test_ids_out_of_range();
    test_merged_weight();
}
