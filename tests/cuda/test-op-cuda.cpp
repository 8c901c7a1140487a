// test-op-cuda.cpp: the op's CUDA kernels on the emulator: the cases of every implementation against F64, and the signs' sums bit by bit
// against the CPU's scalar kernels.
//
//   test-op-cuda          everything
//   test-op-cuda small    what the sanitizers can do in seconds

#include "emulated-node.h"
#include "support/check.h"
#include "support/op-cases.h"

#include "../../ggml_ops/cpu/kernels.h"
#include "matmul.cuh"

#include <cmath>

static constexpr int N_SM = 2; // With so few, blocks take several units of work each.

// Who runs a node: the op's own choice, or one of the two kernels for matrices; that for many rows with the tokens' order, or sorting them
// itself.
enum kernel { CHOSEN, ROWS, TILES, SORTED_TILES };

static bool can_run(const op_case & c, kernel which) {
    return which == CHOSEN || (c.is_matmul() && c.n_rows() > 0 && (which >= TILES || c.n_rows() <= DQRELO_CUDA_FEW_ROWS));
}

static void forward(const ggml_tensor * dst, kernel which) {
    const dqrelo_cuda_op op      = dqrelo_cuda_op_of(dst);
    const size_t         n_bytes = which == CHOSEN ? dqrelo_cuda_work_bytes(&op)
                                   : which == ROWS ? dqrelo_cuda_matmul_rows_bytes(op)
                                                   : dqrelo_cuda_matmul_tiles_bytes(op);
    heap_block           work(n_bytes);
    int32_t              counters[DQRELO_CUDA_COUNTERS] = {};
    switch (which) {
        case CHOSEN: CHECK(dqrelo_cuda_forward(&op, work.data, counters, N_SM, nullptr) == 0); break;
        case ROWS: CHECK(dqrelo_cuda_matmul_rows(op, work.data, counters, N_SM, nullptr) == 0); break;
        case TILES:
        case SORTED_TILES: CHECK(dqrelo_cuda_matmul_tiles(op, work.data, nullptr) == 0); break;
    }
    for (int32_t counter : counters) {
        CHECK(counter == 0);
    }
}

static void run(op_case & c, kernel which) {
    ggml_context * ctx = ggml_init({ (size_t) 64 << 20, nullptr, false });
    c.sorted           = which != SORTED_TILES;
    ggml_tensor * dst  = c.build(ctx);
    run_node(dst, [&] { forward(dst, which); });
    c.out.assign((const float *) dst->data, (const float *) dst->data + ggml_nelements(dst));
    free(dst->data);
    ggml_free(ctx);
}

static void check_case(const std::string & name, op_case & c) {
    check::begin(name.c_str());
    c.fill(31);
    for (kernel which : { CHOSEN, ROWS, TILES, SORTED_TILES }) {
        if (can_run(c, which)) {
            run(c, which);
            CHECK(matches(c));
        }
    }
}

// With y = 0 and one plane the result is d scale (S q), whose integers must be those of the CPU's scalar kernels. Bits are compared: NaN
// too.
static void check_exact(int64_t n_in, float factor, const char * what, kernel which) {
    check::begin(("exact/" + std::string(which == TILES ? "tiles/" : "rows/") + what + "/n_in=" + std::to_string(n_in)).c_str());
    entry_options o;
    o.n_in   = n_in;
    o.n_out  = 37;
    o.cscale = n_in % 16 == 0;
    const random_entry r(o, 71);
    op_case            c;
    c.n_in    = n_in;
    c.ne      = { o.n_out, 3, 1, 1 };
    c.entries = { &r };
    c.tokens  = { { 0, 1.0f }, { 0, 1.0f }, { 0, 1.0f } };
    c.fill(73);
    c.y.assign(c.y.size(), 0.0f);
    c.x[1] *= factor;
    c.x[(size_t) n_in + 5] = 0.0f;
    run(c, which);

    const dqrelo_kernels & scalar = dqrelo_kernels_scalar;
    std::vector<int8_t>    q((size_t) dqrelo_q_bytes(n_in));
    std::vector<int32_t>   sums((size_t) o.n_out);
    int                    wrong = 0;
    for (int64_t t = 0; t < 3; t++) {
        dqrelo_act act;
        scalar.quantize_row(c.x_of(t), r.e.cscale, n_in, q.data(), &act);
        std::vector<float> want((size_t) o.n_out, 0.0f);
        for (int p = 0; p < r.e.n_planes; p++) {
            dqrelo_ahead           nothing = {};
            const dqrelo_sign_tile tile    = { r.e.sign[p], (int) o.n_out, sums.data() };
            scalar.sign_dots(&tile, 1, q.data(), 0, &act, 1, n_in, o.n_out, &nothing);
            for (size_t i = 0; i < want.size(); i++) {
                want[i] += act.d * r.e.scale[p][0] * (float) sums[i];
            }
        }
        for (size_t i = 0; i < want.size(); i++) {
            const float got = c.out[(size_t) t * want.size() + i];
            wrong += !(got == want[i] || (std::isnan(got) && std::isnan(want[i])));
        }
    }
    CHECK(wrong == 0);
}

static void test_exact(bool small) {
    for (kernel which : { ROWS, TILES }) {
        for (int64_t n_in : { 8, 120, 128, 264, 2048, 2176, 4104, 14336, 66048 }) {
            if (n_in < 300 || (!small && (n_in < 20000 || which == ROWS))) { // Emulated tensor cores are slow.
                check_exact(n_in, 1.0f, "signs", which);
            }
        }
        check_exact(256, 1000.0f, "outlier", which);
        check_exact(256, INFINITY, "infinity", which);
        check_exact(256, NAN, "nan", which);
        check_exact(256, 1e-40f, "subnormal", which);
    }
}

// Which rows of y follow the tokens' order, and that the order is one: every position once, by delta, those without a delta last.
static void test_order() {
    struct {
        shape                  ne;
        std::array<int32_t, 3> stride;
        int64_t                n_tokens;
        int32_t                step; // 0 means that there is no order of rows.
    } const cases[] = {
        { { 33, 7, 1, 1 }, { 1, 0, 0 }, 7, 1 },   { { 33, 7, 4, 1 }, { 1, 0, 0 }, 7, 1 },  { { 33, 3, 7, 2 }, { 0, 1, 0 }, 7, 3 },
        { { 33, 3, 7, 2 }, { 1, 3, 21 }, 42, 1 }, { { 33, 3, 7, 2 }, { 0, 0, 1 }, 2, 21 }, { { 33, 3, 7, 2 }, { 0, 1, 7 }, 14, 3 },
        { { 33, 1, 7, 1 }, { 1, 1, 0 }, 7, 1 },   { { 33, 3, 7, 1 }, { 7, 1, 0 }, 21, 0 }, { { 33, 6, 1, 1 }, { 1, 0, 0 }, 7, 0 },
        { { 33, 3, 7, 2 }, { 1, 0, 3 }, 6, 0 },
    };
    check::begin("order");
    const random_entry a({}, 79);
    for (const auto & given : cases) {
        op_case c;
        c.ne      = given.ne;
        c.stride  = given.stride;
        c.tokens  = mixed_tokens(given.n_tokens);
        c.entries = { &a, &a, nullptr };
        c.fill(80);
        ggml_context *       ctx = ggml_init({ (size_t) 1 << 20, nullptr, false });
        const dqrelo_cuda_op op  = dqrelo_cuda_op_of(c.build(ctx));
        CHECK((op.sorted_tokens != nullptr) == (given.step > 0));
        CHECK(!op.sorted_tokens || (op.rows_per_token == given.step && op.n_tokens == given.n_tokens));
        std::vector<float> seen((size_t) given.n_tokens);
        for (int i = 0; op.sorted_tokens && i < op.n_tokens; i++) {
            const size_t at    = (size_t) op.sorted_tokens[2 * i];
            const float  delta = c.tokens[at].scale == 0.0f ? -1.0f : (float) c.tokens[at].delta;
            seen[at] += 1.0f;
            CHECK(op.sorted_tokens[2 * i + 1] == delta);
            CHECK(i == 0 || (op.sorted_tokens[2 * i - 1] == delta
                                 ? op.sorted_tokens[2 * i - 2] < op.sorted_tokens[2 * i]
                                 : delta < 0.0f || (op.sorted_tokens[2 * i - 1] >= 0.0f && op.sorted_tokens[2 * i - 1] < delta)));
        }
        CHECK(!op.sorted_tokens || seen == std::vector<float>((size_t) given.n_tokens, 1.0f));
        ggml_free(ctx);
    }
}

// A row of zeros and a row too small for a step size: the signs add nothing.
static void test_zero_rows() {
    check::begin("rows of zeros");
    entry_options o;
    o.n_in        = 128;
    o.plane_ranks = { 8 };
    const random_entry r(o, 74);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 2, 1, 1 };
    c.entries = { &r };
    c.tokens  = { { 0, 1.0f }, { 0, 1.0f } };
    c.fill(75);
    c.x.assign(c.x.size(), 0.0f);
    c.x[200] = 1e-36f;
    for (kernel which : { ROWS, TILES }) {
        run(c, which);
        CHECK(memcmp(c.out.data(), c.y.data(), c.y.size() * sizeof(float)) == 0);
    }
}

// Activations far larger and far smaller than F16 can hold, through F16 factors; the delta between two deltas has nothing for this weight,
// so that rows of the base lie between theirs.
static void test_factor_range() {
    check::begin("factors of rows of any magnitude");
    entry_options o;
    o.n_in     = 136;
    o.n_planes = 0;
    o.n_out    = 75;
    o.rank     = 70; // A tile of V has less.
    const random_entry a(o, 86), b(o, 87);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 40, 1, 1 };
    c.entries = { &a, nullptr, &b };
    for (int i = 0; i < 40; i++) {
        c.tokens.push_back({ i * 5 % 4 - 1, 1.0f });
    }
    c.fill(88);
    c.y.assign(c.y.size(), 0.0f);
    const float factor[] = { 1e-30f, 1e-12f, 1e-5f, 1.0f, 1e6f, 1e12f, 1e30f };
    for (size_t i = 0; i < c.x.size(); i++) {
        c.x[i] *= factor[i / (size_t) o.n_in % 7];
    }
    for (kernel which : { TILES, SORTED_TILES }) {
        run(c, which);
        CHECK(matches(c));
    }
}

// More rows than a block's shared memory has room for while it sorts.
static void test_many_rows() {
    check::begin("sort many rows");
    entry_options o;
    o.n_in  = 8;
    o.n_out = 3;
    const random_entry a(o, 89), b(o, 90);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 2100, 1, 1 };
    c.entries = { &a, &b, nullptr };
    c.tokens  = mixed_tokens(2100);
    c.fill(91);
    run(c, SORTED_TILES);
    CHECK(matches(c));
}

// In place: rows without a delta are not touched, the others are added to.
static void test_in_place() {
    check::begin("in place");
    entry_options o;
    o.n_in = 136;
    o.rank = 3;
    const random_entry a(o, 76), b(o, 77);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 6, 1, 1 };
    c.tokens  = mixed_tokens(6);
    c.entries = { &a, &b, nullptr };
    c.fill(78);
    for (kernel which : { ROWS, TILES }) {
        ggml_context * ctx = ggml_init({ (size_t) 1 << 20, nullptr, false });
        ggml_tensor *  dst = c.build(ctx);
        dst->data          = dst->src[0]->data;
        forward(dst, which);
        c.out.assign((const float *) dst->data, (const float *) dst->data + ggml_nelements(dst));
        CHECK(matches(c));
        ggml_free(ctx);
    }
}

// With the same kernel a row of a batch is, bit for bit, what it is alone: also where x's rows are not aligned alike.
static void test_row_alone(kernel which, int64_t n_rows) {
    check::begin(which == TILES ? "tiles/a row alone and in a batch" : "rows/a row alone and in a batch");
    entry_options o;
    o.n_in        = 333 * 8;
    o.n_out       = 50;
    o.rank        = 20;
    o.plane_ranks = { 30, 9, 1 };
    const random_entry a(o, 3), b(o, 4);
    op_case            c;
    c.ne      = { o.n_out, n_rows, 1, 1 };
    c.n_in    = o.n_in;
    c.tokens  = mixed_tokens(n_rows);
    c.entries = { &a, &b, nullptr };
    c.gaps    = true;
    c.fill(37);
    run(c, which);
    CHECK(matches(c));
    for (int64_t r : { (int64_t) 0, (int64_t) 2, n_rows - 2 }) {
        op_case alone = c;
        alone.gaps    = false;
        alone.ne      = { o.n_out, 1, 1, 1 };
        alone.tokens  = { c.tokens[(size_t) r] };
        alone.x.assign(c.x.begin() + r * o.n_in, c.x.begin() + (r + 1) * o.n_in);
        alone.y.assign(c.y.begin() + r * o.n_out, c.y.begin() + (r + 1) * o.n_out);
        run(alone, which);
        CHECK(memcmp(alone.out.data(), c.out.data() + r * o.n_out, (size_t) o.n_out * sizeof(float)) == 0);
    }
}

// Every kind of entry in small shapes: what ends inside a block of work, a piece of signs or a vector.
static void test_small() {
    entry_options o;
    o.n_in           = 136;
    o.n_out          = 35;
    o.rank           = 5;
    entry_options o1 = o;
    o1.n_in = o.n_in = 160;
    o1.n_planes      = 2;
    o1.cscale        = true;
    o1.scale_per_row = true;
    o1.rank          = 32;
    o1.type_u        = GGML_TYPE_Q8_0;
    o1.type_v        = GGML_TYPE_Q4_0;
    entry_options o2 = o;
    o2.dense         = true;
    entry_options o3 = o;
    o3.n_planes      = 0;
    o3.cscale        = true;
    o3.plane_ranks   = { 33, 6, 1 };
    entry_options o4 = o, o5 = o;
    o4.sparse       = sparsity::LISTS;
    o4.type_entries = GGML_TYPE_I8;
    o5.sparse       = sparsity::MASK;
    const random_entry a(o, 81), b(o1, 82), d(o2, 83), z(o3, 85), l(o4, 87), m(o5, 88);
    op_case            c;
    c.n_in    = o.n_in;
    c.ne      = { o.n_out, 9, 1, 1 };
    c.entries = { &a, &b, &d, &z, &l, &m };
    c.gaps    = true;
    for (int i = 0; i < 9; i++) {
        c.tokens.push_back({ i % 7 - 1, 1.0f });
    }
    check_case("small/matmul", c);
    o3.plane_ranks = { 17, 7 };
    const random_stack s(o1, 3, 84), t(o3, 3, 86);
    c.form   = DQRELO_FORM_MATMUL_ID;
    c.one_x  = true;
    c.ne     = { o.n_out, 2, 3, 1 };
    c.stride = { 0, 1, 0 };
    c.tokens = mixed_tokens(3);
    c.stacks = { &s, &t, nullptr };
    c.ids    = { 2, 0, 1, 1, 0, 2 };
    check_case("small/matmul_id", c);
    o4.n_in = 328;
    const random_stack p(o4, 3, 89);
    c.n_in   = o4.n_in;
    c.stacks = { &p, nullptr, &p };
    check_case("small/matmul_id of sparse weights", c);
    op_case whole;
    whole.form   = DQRELO_FORM_ADD;
    whole.ne     = { o4.n_in, o4.n_out, 3, 1 };
    whole.stride = { 0, 0, 0 };
    whole.tokens = { { 0, 0.5f } };
    whole.stacks = { &p };
    check_case("small/add a stack of sparse weights", whole);
    test_add_id();
    test_merged_weight();
}

int main(int argc, char ** argv) {
    const bool small = argc > 1 && strcmp(argv[1], "small") == 0;
    test_order();
    test_small();
    test_exact(small);
    test_zero_rows();
    test_in_place();
    test_factor_range();
    if (!small) {
        test_many_rows();
        test_row_alone(ROWS, 16);
        test_row_alone(TILES, 80);
        test_all_cases();
    }
    return check::finish();
}
