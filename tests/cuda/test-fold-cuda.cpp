// test-fold-cuda.cpp: the op that computes the base's product itself, by its CUDA kernels on the emulator, against F64.
//
//   test-fold-cuda          everything
//   test-fold-cuda small    what the sanitizers can do in seconds

#include "emulated-node.h"
#include "support/check.h"
#include "support/fold-cases.h"

#include "matmul.cuh"

#include <cmath>
#include <string>

// W + s D, and x, are F16 of 11 bits each, which is 2^-11 at most; entries are added to a W that is rounded already.
static constexpr double ROUNDING = 3.0 / 2048;

static void forward(const ggml_tensor * dst) {
    const dqrelo_cuda_op op = dqrelo_cuda_op_of(dst);
    heap_block           work(dqrelo_cuda_work_bytes(&op));
    int32_t              counters[DQRELO_CUDA_COUNTERS] = {};
    CHECK(dqrelo_cuda_forward(&op, work.data, counters, 2, nullptr) == 0);
}

static void run(fold_case & f) {
    ggml_context * ctx = ggml_init({ (size_t) 64 << 20, nullptr, false });
    ggml_tensor *  dst = f.build(ctx);
    run_node(dst, [&] { forward(dst); });
    f.c.out.assign((const float *) dst->data, (const float *) dst->data + ggml_nelements(dst));
    free(dst->data);
    ggml_free(ctx);
}

static void check_case(const std::string & name, fold_case & f) {
    check::begin(name.c_str());
    f.rounding = ROUNDING;
    run(f);
    CHECK(f.matches());
}

// Long and short sequences of every kind of delta: 150 outputs are more than two tiles, 200 columns no multiple of what is taken at once.
static void test_types() {
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        const bool    is_block = type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0;
        const int64_t n_in     = is_block ? 224 : 200;
        const kinds   k(n_in, 150);
        for (bool sorted : { true, false }) { // Without the tokens' order the op sorts the rows for itself.
            fold_case f(type, n_in, 150);
            f.c.entries = k.all();
            f.c.sorted  = sorted;
            f.c.gaps    = sorted;
            f.set_tokens(mixed());
            check_case(std::string("mixed/") + ggml_type_name(type) + (sorted ? "" : "/unsorted"), f);
        }
    }
}

static void test_each_alone(const std::vector<int64_t> & rows) {
    const kinds k(200, 37);
    const auto  entries = k.all();
    for (size_t i = 0; i < entries.size(); i++) {
        for (int64_t n : rows) {
            for (bool many : { true, false }) {
                fold_case f(GGML_TYPE_F16, 200, 37);
                f.c.entries = { entries[i] };
                f.set_tokens(all_of(0, n, 1.25f, many));
                check_case("kind=" + std::to_string(i) + "/rows=" + std::to_string(n) + (many ? "" : "/few"), f);
            }
        }
    }
}

static void test_planes() {
    for (int n_planes = 1; n_planes <= DQRELO_MAX_PLANES; n_planes++) {
        for (int scales = 0; scales < 4; scales++) {
            entry_options o = kinds::options(136, 70, n_planes, 3);
            o.scale_per_row = scales % 2 == 1;
            o.cscale        = scales / 2 == 1;
            const random_entry a(o, 91);
            fold_case          f(GGML_TYPE_F16, 136, 70);
            f.c.entries = { &a };
            f.set_tokens(all_of(0, 33, -0.75f));
            check_case("planes=" + std::to_string(n_planes) + "/scales=" + std::to_string(scales), f);
        }
    }
}

// Rows of W that begin anywhere.
static void test_odd_length() {
    const random_entry dense(kinds::dense_options(37, 65), 75);
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        fold_case f(type, 37, 65);
        f.c.entries = { &dense };
        auto tokens = all_of(0, 35);
        tokens.push_back({ -1, 1.0f });
        f.set_tokens(tokens);
        check_case(std::string("n_in=37/") + ggml_type_name(type), f);
    }
}

// Every row is, bit for bit, what it is with no other delta in the batch.
static void test_row_alone() {
    const kinds k(264, 70);
    fold_case   f(GGML_TYPE_F16, 264, 70);
    f.c.entries = k.all();
    f.set_tokens(mixed());
    check_case("rows in two batches", f);
    const auto is_of = [&](size_t r, const token_delta & t) {
        return f.c.tokens[r].delta == t.delta && f.c.tokens[r].scale == t.scale && f.c.tokens[r].length == t.length;
    };
    for (size_t first = 0; first < f.c.tokens.size(); first++) {
        const token_delta own = f.c.tokens[first];
        if (first > 0 && is_of(first - 1, own)) {
            continue;
        }
        size_t end = first;
        while (end < f.c.tokens.size() && is_of(end, own)) {
            end++;
        }
        fold_case alone(GGML_TYPE_F16, 264, 70);
        alone.c.entries = f.c.entries;
        alone.set_tokens({ f.c.tokens.begin() + (ptrdiff_t) first, f.c.tokens.begin() + (ptrdiff_t) end });
        alone.c.x.assign(f.c.x.begin() + (ptrdiff_t) first * 264, f.c.x.begin() + (ptrdiff_t) end * 264);
        run(alone);
        CHECK(memcmp(alone.c.out.data(), f.c.out.data() + first * 70, (end - first) * 70 * sizeof(float)) == 0);
    }
}

// A row of x that is not finite gives one that is not, and changes no other; rows of any finite magnitude are right.
static void test_range_of_x() {
    check::begin("a row that is not finite");
    const kinds k(72, 37);
    fold_case   f(GGML_TYPE_F16, 72, 37);
    f.c.entries = { &k.scaled };
    f.set_tokens(all_of(0, 40));
    run(f);
    const std::vector<float> sound = f.c.out;
    for (float odd : { INFINITY, -INFINITY, NAN }) {
        f.c.x[(size_t) 72 * 33 + 7] = odd;
        run(f);
        int wrong = 0;
        for (size_t at = 0; at < f.c.out.size(); at++) {
            wrong += at / 37 == 33 ? std::isfinite(f.c.out[at]) : f.c.out[at] != sound[at];
        }
        CHECK(wrong == 0);
    }
    f.set_tokens(all_of(0, 40));
    const float factor[] = { 1e-30f, 1e-12f, 1e-5f, 1.0f, 1e6f, 1e12f, 1e30f };
    for (size_t i = 0; i < f.c.x.size(); i++) {
        f.c.x[i] *= factor[i / 72 % 7];
    }
    check_case("rows of any magnitude", f);
    std::fill(f.c.x.begin(), f.c.x.end(), 0.0f);
    check_case("rows of zeros", f);
}

static void test_many_scales() {
    const kinds              k(64, 37);
    fold_case                f(GGML_TYPE_F16, 64, 37);
    std::vector<token_delta> tokens;
    for (int i = 0; i < 200; i++) {
        tokens.push_back({ i % 2, 1.0f + (float) (i / 2) / 512.0f, true });
    }
    f.c.entries = { &k.planes, &k.codes };
    f.set_tokens(tokens);
    check_case("100 scales", f);
}

int main(int argc, char ** argv) {
    const bool small = argc > 1 && strcmp(argv[1], "small") == 0;
    test_each_alone(small ? std::vector<int64_t>{ 33 } : std::vector<int64_t>{ 1, 31, 129 });
    test_odd_length();
    test_range_of_x();
    if (!small) {
        test_types();
        test_planes();
        test_row_alone();
        test_many_scales();
    }
    return check::finish();
}
