// test-op.cpp: the op DQRELO in a ggml graph on the CPU, against F64: forms, deltas, strides, threads. The kernels alone are in
// test-kernels.cpp.

#include "support/check.h"
#include "support/op-cases.h"
#include "support/transposed-entry.h"

#include "cpu/isa.h"
#include "ggml-cpu.h"

static void run(op_case & c, int n_threads, bool transposed = false) {
    ggml_context * ctx   = ggml_init({ (size_t) 64 << 20, nullptr, false });
    ggml_tensor *  dst   = c.build(ctx);
    const auto     signs = transposed ? transpose_table(dst) : decltype(transpose_table(dst)){};
    ggml_cgraph *  graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, dst);
    ggml_graph_compute_with_ctx(ctx, graph, n_threads);
    c.out.assign((const float *) dst->data, (const float *) dst->data + ggml_nelements(dst));
    ggml_free(ctx);
}

static void check_case(const std::string & name, op_case & c) {
    check::begin(name.c_str());
    c.fill(31);
    run(c, 1);
    CHECK(matches(c));
    const std::vector<float> one         = c.out;
    const auto               check_again = [&](int n_threads, bool transposed) {
        run(c, n_threads, transposed);
        CHECK(memcmp(one.data(), c.out.data(), one.size() * sizeof(float)) == 0);
    };
    check_again(2, false);
    check_again(4, false);
    for (int n_threads = 1; n_threads < 4 && dqrelo_transposes_signs(); n_threads += 2) {
        check_again(n_threads, true);
    }
}

// A row of a mixed batch is, bit for bit, what it is alone.
static void test_matmul_row_alone() {
    check::begin("matmul/a row alone and in a batch");
    entry_options o;
    o.n_in           = 576;
    o.n_out          = 130;
    o.rank           = 20;
    entry_options o1 = o, lists = o, mask = o;
    o1.plane_ranks     = { 70, 10 };
    lists.sparse       = sparsity::LISTS;
    lists.type_entries = GGML_TYPE_I8;
    mask.sparse        = sparsity::MASK;
    const random_entry a(o, 3), b(o1, 4), l(lists, 5), m(mask, 6);
    op_case            c;
    c.ne     = { o.n_out, 40, 1, 1 };
    c.n_in   = o.n_in;
    c.tokens = mixed_tokens(40);
    for (const auto & entries : { std::vector<const random_entry *>{ &a, &b, nullptr }, { &l, &m, nullptr } }) {
        c.entries = entries;
        c.fill(37);
        run(c, 2);
        for (int64_t r : { 0, 2, 24, 38 }) { // of both deltas
            op_case alone = c;
            alone.ne      = { o.n_out, 1, 1, 1 };
            alone.tokens  = { c.tokens[(size_t) r] };
            alone.x.assign(c.x.begin() + r * o.n_in, c.x.begin() + (r + 1) * o.n_in);
            alone.y.assign(c.y.begin() + r * o.n_out, c.y.begin() + (r + 1) * o.n_out);
            run(alone, 1);
            CHECK(memcmp(alone.out.data(), c.out.data() + r * o.n_out, (size_t) o.n_out * sizeof(float)) == 0);
        }
    }
}

// A token's result is, bit for bit, the same alone and in a batch, and for each expert what its matrix gives as a weight of its own.
static void test_matmul_id_row_alone() {
    check::begin("matmul_id/a token alone and in a batch");
    entry_options o;
    o.n_in  = 576;
    o.n_out = 130;
    o.rank  = 20;
    const random_stack a(o, 8, 55), b(o, 8, 56);
    op_case            c;
    c.form   = DQRELO_FORM_MATMUL_ID;
    c.one_x  = true;
    c.n_in   = o.n_in;
    c.ne     = { o.n_out, 4, 60, 1 };
    c.stride = { 0, 1, 0 };
    c.tokens = mixed_tokens(60);
    c.stacks = { &a, &b, nullptr };
    for (int64_t r = 0; r < c.n_rows(); r++) {
        c.ids.push_back((int32_t) (r * r % 8));
    }
    c.fill(38);
    run(c, 3);
    for (int64_t t : { 0, 2, 36, 56 }) {
        for (int64_t u = 0; u < 4; u++) {
            const int64_t r = t * 4 + u;
            op_case       alone;
            alone.n_in    = o.n_in;
            alone.ne      = { o.n_out, 1, 1, 1 };
            alone.tokens  = { { 0, c.tokens[(size_t) t].scale } };
            alone.entries = { c.entry_of(r) };
            alone.x.assign(c.x_of(r), c.x_of(r) + o.n_in);
            alone.y.assign(c.y.begin() + r * o.n_out, c.y.begin() + (r + 1) * o.n_out);
            run(alone, 1);
            CHECK(memcmp(alone.out.data(), c.out.data() + r * o.n_out, (size_t) o.n_out * sizeof(float)) == 0);
        }
    }
}

// A row of x that is not finite gives one that is not, and changes no other.
static void test_not_finite() {
    check::begin("matmul/a row that is not finite");
    entry_options o;
    o.n_planes    = 0;
    o.plane_ranks = { 20, 4 };
    const random_entry a(o, 5);
    op_case            c;
    c.ne      = { o.n_out, 3, 1, 1 };
    c.n_in    = o.n_in;
    c.tokens  = { { 0, 1.0f }, { 0, 1.0f }, { 0, 1.0f } };
    c.entries = { &a };
    c.fill(39);
    run(c, 2);
    const std::vector<float> sound = c.out;
    for (float odd : { INFINITY, -INFINITY, NAN }) {
        c.x[(size_t) o.n_in + 7] = odd;
        run(c, 2);
        for (int64_t i = 0; i < o.n_out; i++) {
            CHECK(!std::isfinite(c.out[(size_t) (o.n_out + i)]));
        }
        for (int64_t r : { 0, 2 }) {
            CHECK(memcmp(c.out.data() + r * o.n_out, sound.data() + r * o.n_out, (size_t) o.n_out * sizeof(float)) == 0);
        }
    }
}

// ggml_dqrelo_set on a node that had another op, as the graph pass does.
static void test_set() {
    check::begin("set/a node becomes the op");
    ggml_context * ctx      = ggml_init({ (size_t) 1 << 20, nullptr, false });
    ggml_tensor *  y        = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 33, 4);
    ggml_tensor *  x        = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 4);
    ggml_tensor *  table    = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, 3 * (int64_t) sizeof(dqrelo_entry));
    ggml_tensor *  tokens   = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, 4);
    ggml_tensor *  node     = ggml_add(ctx, y, y);
    const int32_t  stride[] = { 1, 2, 3 };
    ggml_dqrelo_set(node, DQRELO_FORM_MATMUL, y, x, nullptr, table, tokens, stride);
    CHECK(node->op == GGML_OP_DQRELO && strcmp(ggml_op_name(node->op), "DQRELO") == 0);
    CHECK(ggml_dqrelo_form(node) == DQRELO_FORM_MATMUL);
    CHECK(memcmp(ggml_dqrelo_stride(node), stride, sizeof(stride)) == 0);
    CHECK(node->src[0] == y && node->src[1] == x && node->src[2] == table && node->src[3] == tokens && node->src[4] == nullptr &&
          node->src[5] == nullptr);
    ggml_free(ctx);
}

int main() {
    printf("instruction set: %s\n", dqrelo_isa_name(dqrelo_isa_chosen()));
    test_all_cases();
    test_matmul_row_alone();
    test_matmul_id_row_alone();
    test_not_finite();
    test_set();
    return check::finish();
}
