// test-op-fold.cpp: the op DQRELO that computes the base's product itself, against F64: folded rows, rows that are not, and what they do
// not change of one another.

#include "support/check.h"
#include "support/fold-cases.h"
#include "support/fold-run.h"

#include "cpu/isa.h"

#include <memory>
#include <string>
#include <tuple>
#include <utility>

// 4104 columns are more than the tile takes at once, 150 outputs more than two tiles; 1000 is no multiple of any vector.
static void test_types() {
    for (ggml_type type :
         { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
           GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS }) {
        for (int64_t n_in : { 64, 256, 1000, 4128, 4352 }) {
            const bool is_k = n_in == 256 || n_in == 4352; // K-quants have blocks of 256.
            if (n_in % ggml_blck_size(type) != 0 || is_k != (ggml_blck_size(type) == 256)) {
                continue;
            }
            const kinds k(n_in, 150);
            fold_case   f(type, n_in, 150);
            f.c.entries = k.all();
            f.set_tokens(mixed());
            check_case(std::string("fold/mixed/") + ggml_type_name(type) + "/n_in=" + std::to_string(n_in), f);
        }
    }
}

static void test_each_alone() {
    const kinds k(200, 37);
    const auto  entries = k.all();
    for (size_t i = 0; i < entries.size(); i++) {
        for (int64_t n : { 1, 31, 32, 97 }) {
            fold_case f(GGML_TYPE_F16, 200, 37);
            f.c.entries = { entries[i] };
            f.set_tokens(all_of(0, n, 1.25f));
            check_case("fold/kind=" + std::to_string(i) + "/rows=" + std::to_string(n), f);
            f.set_tokens(all_of(0, n, 1.25f, false));
            check_case("fold/kind=" + std::to_string(i) + "/rows=" + std::to_string(n) + "/few", f);
        }
    }
}

// A folded row is, bit for bit, the same whoever else is in the batch.
static void test_row_alone() {
    check::begin("fold/a row in two batches");
    const kinds k(576, 130);
    fold_case   f(GGML_TYPE_Q8_0, 576, 130);
    f.c.entries = k.all();
    f.set_tokens(mixed());
    run(f, 2);
    fold_case own(GGML_TYPE_Q8_0, 576, 130);
    own.c.entries = f.c.entries;
    for (const auto & [delta, first, n, scale] :
         { std::tuple<int, int64_t, int64_t, float>(1, 23, 40, 0.75f), { 8, 258, 34, 0.5f }, { 9, 298, 33, -0.5f } }) { // in mixed()
        own.set_tokens(all_of(delta, n, scale));
        own.c.x.assign(f.c.x.begin() + first * 576, f.c.x.begin() + (first + n) * 576);
        run(own, 3);
        CHECK(memcmp(own.c.out.data(), f.c.out.data() + first * 130, (size_t) (n * 130) * sizeof(float)) == 0);
    }
}

// More rows of B, and more columns of each, than a tile has.
static void test_decoded_in_pieces() {
    entry_options o = kinds::options(2104, 2072, 0, 0);
    o.plane_ranks   = { 2056, 2056 };
    const random_entry e(o, 80);
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16 }) { // in F32, and as integers
        fold_case f(type, o.n_in, o.n_out);
        f.c.entries = { &e };
        f.set_tokens(all_of(0, 3, 0.5f));
        check_case(std::string("fold/more codes than a tile has/") + ggml_type_name(type), f);
    }
}

// Without the base's product, too, sign factors of long sequences are decoded: they are nearer to F64 than quantised ones.
static void test_decoded_without_fold() {
    check::begin("decoded/without the base's product");
    const kinds k(576, 130);
    double      error[2];
    for (bool many : { true, false }) {
        fold_case f(GGML_TYPE_F32, 576, 130);
        f.c.entries = { &k.decoded };
        f.set_tokens(all_of(0, 40, 1.0f, many));
        f.c.y.assign(f.c.y.size(), 0.0f);
        ggml_context * ctx   = ggml_init({ (size_t) 32 << 20, nullptr, false });
        ggml_tensor *  dst   = f.c.build(ctx);
        ggml_cgraph *  graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, dst);
        ggml_graph_compute_with_ctx(ctx, graph, 2);
        error[many] = 0.0;
        for (int64_t r = 0; r < 40; r++) {
            const std::vector<double> want = expect_matmul(k.decoded, f.c.x_of(r), 0.0).value;
            for (int64_t i = 0; i < 130; i++) {
                error[many] += std::pow(((const float *) dst->data)[r * 130 + i] - want[(size_t) i], 2.0);
            }
        }
        ggml_free(ctx);
    }
    CHECK(error[true] < 1e-3 * error[false]);
}

// A row of x that is not finite gives one that is not, and changes no other.
static void test_not_finite() {
    check::begin("fold/a row that is not finite");
    const kinds k(576, 130);
    fold_case   f(GGML_TYPE_F16, 576, 130);
    f.c.entries = { &k.scaled };
    f.set_tokens(all_of(0, 40));
    run(f, 2);
    const std::vector<float> sound = f.c.out;
    for (float odd : { INFINITY, -INFINITY, NAN }) {
        f.c.x[(size_t) 576 * 33 + 7] = odd;
        run(f, 2);
        for (int64_t r = 0; r < 40; r++) {
            for (int64_t i = 0; i < 130; i++) {
                const float got = f.c.out[(size_t) (r * 130 + i)];
                CHECK(r == 33 ? !std::isfinite(got) : got == sound[(size_t) (r * 130 + i)]);
            }
        }
    }
}

// More request scales than are told apart: the rows of the others are not folded, and right too.
static void test_many_scales() {
    const kinds              k(64, 37);
    fold_case                f(GGML_TYPE_F16, 64, 37);
    std::vector<token_delta> tokens;
    for (int i = 0; i < 600; i++) {
        tokens.push_back({ i % 2, 1.0f + (float) (i / 2) / 512.0f, DQRELO_FOLD_ROWS });
    }
    f.c.entries = { &k.planes, &k.codes };
    f.set_tokens(tokens);
    check::begin("fold/300 scales");
    run(f, 2);
    bool right = true;
    for (int64_t r = 0; r < f.c.n_rows(); r++) {
        f.c.tokens[(size_t) r].length = r < 510 ? DQRELO_FOLD_ROWS : 0; // which says how far off a row may be
        right                         = right && f.matches_row(r);
    }
    CHECK(right);
}

// A row of the base, or one that is not folded, is what ggml's product of the whole batch gives, bit for bit: whether its neighbours are
// folded or not. ggml has other instructions for a single row than for many.
static void test_rows_beside_folded_ones() {
    const kinds k(256, 64);
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                            GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                            GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_TQ2_0 }) {
        for (int64_t at : { 0, 20, 40 }) {
            check::begin(
                (std::string("fold/a row of the base beside folded ones/") + ggml_type_name(type) + "/" + std::to_string(at)).c_str());
            fold_case                f(type, 256, 64);
            std::vector<token_delta> tokens = all_of(0, 41);
            tokens[(size_t) at]             = { -1, 1.0f };
            f.c.entries                     = { &k.planes };
            f.set_tokens(tokens);
            run(f, 2);
            ggml_context * ctx = ggml_init({ (size_t) 32 << 20, nullptr, false });
            ggml_tensor *  y   = ggml_mul_mat(ctx, f.weight(ctx), make_f32(ctx, { 256, 41, 1, 1 }, f.c.x, false));
            ggml_cgraph *  g   = ggml_new_graph(ctx);
            ggml_build_forward_expand(g, y);
            ggml_graph_compute_with_ctx(ctx, g, 2);
            CHECK(memcmp((const float *) y->data + at * 64, f.c.out.data() + at * 64, 64 * sizeof(float)) == 0);
            ggml_free(ctx);
            CHECK(f.matches());
        }
    }
}

static void test_rows_anywhere_beside_folded_ones() {
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS }) {
        fold_case f(type, 512, 48);
        check_rows_beside_folded_ones(std::string("fold/rows beside folded ones/") + ggml_type_name(type), f);
    }
}

static void test_equals_two_nodes() {
    check::begin("fold/rows that are not folded equal those of two nodes");
    const kinds k(576, 130);
    fold_case   f(GGML_TYPE_F16, 576, 130);
    f.c.entries = { &k.planes, &k.scaled, &k.codes };
    f.set_tokens(mixed_tokens(30));
    run(f, 2);
    CHECK(f.c.out == two_nodes(f));
}

//
// experts
//

constexpr ggml_type EXPERT_TYPES[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,   GGML_TYPE_Q4_0,
                                       GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K,
                                       GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,   GGML_TYPE_IQ4_XS };

static void test_expert_types() {
    for (ggml_type type : EXPERT_TYPES) {
        for (int64_t n_in : { 64, 512, 1000 }) {
            if (n_in % ggml_blck_size(type) != 0 || (n_in == 512) != (ggml_blck_size(type) == 256)) {
                continue;
            }
            const stack_kinds k(n_in, 70, 7);
            for (bool one_x : { true, false }) {
                fold_case f = fold_case::of_experts(type, n_in, 70, 7, 3);
                f.c.stacks  = k.all();
                f.c.one_x   = one_x;
                f.c.gaps    = n_in == 64;
                f.set_tokens(mixed());
                check_case(std::string("fold/experts/") + ggml_type_name(type) + "/n_in=" + std::to_string(n_in) +
                               (one_x ? "/x of the token" : "/x of the expert"),
                           f);
            }
        }
    }
}

static void test_each_expert_kind_alone() {
    const stack_kinds k(200, 37, 5);
    for (size_t i = 0; i < k.stacks.size(); i++) {
        for (int64_t n : { 1, 31, 32, 97 }) {
            fold_case f = fold_case::of_experts(GGML_TYPE_F16, 200, 37, 5, 2);
            f.c.stacks  = { k.stacks[i].get() };
            f.c.one_x   = true;
            for (bool many : { true, false }) {
                f.set_tokens(all_of(0, n, 1.25f, many));
                check_case("fold/experts/kind=" + std::to_string(i) + "/tokens=" + std::to_string(n) + (many ? "" : "/few"), f);
            }
        }
    }
}

static void test_experts_beside_folded_ones() {
    for (ggml_type type : EXPERT_TYPES) {
        fold_case f = fold_case::of_experts(type, 256, 70, 5, 2);
        f.c.one_x   = type != GGML_TYPE_F16;
        check_experts_beside_folded_ones(std::string("fold/experts/rows that are not folded/") + ggml_type_name(type), f);
    }
}

// How long a sequence must be depends on how many experts there are for its rows.
static void test_expert_length() {
    const stack_kinds k(64, 33, 20);
    for (int64_t length : { 32, 64, 96, 128, 8160, 100000 }) {
        check::begin(("fold/experts/a sequence of " + std::to_string(length)).c_str());
        fold_case                f      = fold_case::of_experts(GGML_TYPE_Q8_0, 64, 33, 20, 2);
        std::vector<token_delta> tokens = all_of(0, 50);
        for (token_delta & token : tokens) {
            token.length = length;
        }
        f.c.stacks = { k.stacks[0].get() };
        f.set_tokens(tokens);
        run(f, 2);
        CHECK(f.matches());
        CHECK((f.c.out == two_nodes(f)) == (length < DQRELO_FOLD_EXPERT_ROWS * 20 / 2));
    }
}

// Sign factors of experts are decoded where each of them has as many rows as another weight needs.
static void test_expert_length_for_codes() {
    const stack_kinds        k(64, 33, 20);
    std::vector<float>       plain;
    const random_stack *     decoded = k.stacks[8].get();
    std::vector<token_delta> tokens  = all_of(0, 50);
    for (int64_t length : { 0, 32, 288, 320, 352 }) {
        check::begin(("decoded/experts/a sequence of " + std::to_string(length)).c_str());
        fold_case f = fold_case::of_experts(GGML_TYPE_F16, 64, 33, 20, 2);
        for (token_delta & token : tokens) {
            token.length = length;
        }
        f.c.stacks = { decoded };
        f.set_tokens(tokens);
        run(f, 2);
        CHECK(f.matches());
        plain = length == 0 ? f.c.out : plain;
        CHECK((f.c.out == plain) == (length < DQRELO_FOLD_ROWS * 20 / 2));
    }
}

// A folded row is, bit for bit, the same whoever else is in the batch, and however few rows its expert has.
static void test_expert_row_alone() {
    check::begin("fold/experts/a row in two batches");
    const stack_kinds k(576, 130, 5);
    fold_case         f = fold_case::of_experts(GGML_TYPE_Q8_0, 576, 130, 5, 2);
    f.c.stacks          = k.all();
    f.set_tokens(mixed());
    run(f, 2);
    for (const auto & [first, n] : { std::pair<int64_t, int64_t>(23, 40), { 25, 1 }, { 40, 2 } }) { // tokens of delta 1 in mixed()
        fold_case own = fold_case::of_experts(GGML_TYPE_Q8_0, 576, 130, 5, 2);
        own.c.stacks  = f.c.stacks;
        own.set_tokens(all_of(1, n, 0.75f));
        own.c.x.assign(f.c.x.begin() + first * 2 * 576, f.c.x.begin() + (first + n) * 2 * 576);
        own.c.ids.assign(f.c.ids.begin() + first * 2, f.c.ids.begin() + (first + n) * 2);
        run(own, 3);
        CHECK(memcmp(own.c.out.data(), f.c.out.data() + first * 2 * 130, (size_t) n * 2 * 130 * sizeof(float)) == 0);
    }
}

// Ids of a router that met NaN may be anything.
static void test_experts_out_of_range() {
    const stack_kinds k(64, 33, 5);
    fold_case         f = fold_case::of_experts(GGML_TYPE_F16, 64, 33, 5, 3);
    f.c.stacks          = k.all();
    f.set_tokens(mixed());
    for (size_t r = 0; r < f.c.ids.size(); r += 7) {
        f.c.ids[r] = r % 2 == 0 ? -5 : INT32_MAX;
    }
    check_case("fold/experts/ids out of range", f);
}

static void test_experts_not_finite() {
    check::begin("fold/experts/a row that is not finite");
    const stack_kinds k(576, 40, 4);
    fold_case         f = fold_case::of_experts(GGML_TYPE_F16, 576, 40, 4, 2);
    f.c.stacks          = { k.stacks[1].get() };
    f.set_tokens(all_of(0, 40));
    run(f, 2);
    const std::vector<float> sound         = f.c.out;
    f.c.x[(size_t) 576 * (2 * 33 + 1) + 7] = NAN;
    run(f, 2);
    for (int64_t r = 0; r < f.c.n_rows(); r++) {
        for (int64_t i = 0; i < 40; i++) {
            const float got = f.c.out[(size_t) (r * 40 + i)];
            CHECK(r == 2 * 33 + 1 ? !std::isfinite(got) : got == sound[(size_t) (r * 40 + i)]);
        }
    }
}

int main() {
    printf("instruction set: %s\n", dqrelo_isa_name(dqrelo_isa_chosen()));
    test_types();
    test_each_alone();
    test_row_alone();
    test_decoded_in_pieces();
    test_decoded_without_fold();
    test_not_finite();
    test_many_scales();
    test_rows_beside_folded_ones();
    test_rows_anywhere_beside_folded_ones();
    test_equals_two_nodes();
    test_expert_types();
    test_each_expert_kind_alone();
    test_experts_beside_folded_ones();
    test_expert_length();
    test_expert_length_for_codes();
    test_expert_row_alone();
    test_experts_out_of_range();
    test_experts_not_finite();
    return check::finish();
}
