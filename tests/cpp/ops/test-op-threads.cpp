// test-op-threads.cpp: the op on 4 threads under ThreadSanitizer, and the same result, bit for bit, as on one.
// The operator's CPU sources are compiled in, with this file's threads and barrier in place of ggml's, which are built without the
// sanitizer.

#include "support/check.h"
#include "support/fold-case.h"
#include "support/op-cases.h"

#include "cpu/base-product.h"
#include "dqrelo-cpu.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

struct ggml_threadpool {
    int                     n_threads;
    int                     n_waiting = 0;
    int                     round     = 0;
    std::mutex              mutex;
    std::condition_variable next_round;
};

void ggml_barrier(ggml_threadpool * tp) {
    std::unique_lock<std::mutex> lock(tp->mutex);
    const int                    round = tp->round;
    if (++tp->n_waiting == tp->n_threads) {
        tp->n_waiting = 0;
        tp->round++;
        tp->next_round.notify_all();
        return;
    }
    tp->next_round.wait(lock, [&] { return tp->round != round; });
}

// In place of ggml's product, which the sanitizer does not see either: each thread makes some outputs.
size_t dqrelo_base_product_bytes(const ggml_tensor *, int n_threads) {
    return (size_t) n_threads;
}

size_t dqrelo_tiled_experts_bytes(const ggml_tensor *, int) {
    return 0;
}

bool dqrelo_tiled_experts(const ggml_compute_params *, const ggml_tensor *, int64_t, const int32_t (*)[2], int64_t, void *, void *) {
    GGML_ABORT("no weight here has tiles");
}

void dqrelo_repacked_product(ggml_type, const void *, int64_t, const void *, int64_t, float *) {
    GGML_ABORT("no weight here is repacked");
}

void dqrelo_base_product(const ggml_compute_params * params, const ggml_tensor * node, int64_t r0, int64_t n, void * memory,
                         size_t n_bytes) {
    const ggml_tensor * w = ggml_dqrelo_base_weight(node);
    const ggml_tensor * x = node->src[1];
    GGML_ASSERT(w->type == GGML_TYPE_F32 && n_bytes == (size_t) params->nth);
    ((uint8_t *) memory)[params->ith] = 1;
    for (int64_t r = r0; r < r0 + n; r++) {
        for (int64_t i = params->ith; i < node->ne[0]; i += params->nth) {
            double sum = 0.0;
            for (int64_t j = 0; j < w->ne[0]; j++) {
                sum += (double) *(const float *) ((const char *) w->data + i * w->nb[1] + j * sizeof(float)) *
                       *(const float *) ((const char *) x->data + r * x->nb[1] + j * sizeof(float));
            }
            *(float *) ((char *) node->data + r * node->nb[1] + i * sizeof(float)) = (float) sum;
        }
    }
}

// The same for experts: how ggml multiplies a row of F32 with another one.
const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) {
    static const ggml_type_traits_cpu traits = [] {
        ggml_type_traits_cpu t = {};
        t.vec_dot_type         = GGML_TYPE_F32;
        t.vec_dot              = [](int n, float * out, size_t, const void * a, size_t, const void * b, size_t, int) {
            double sum = 0.0;
            for (int j = 0; j < n; j++) {
                sum += (double) ((const float *) a)[j] * ((const float *) b)[j];
            }
            *out = (float) sum;
        };
        return t;
    }();
    GGML_ASSERT(type == GGML_TYPE_F32);
    return &traits;
}

// Computes the nodes one after the other with one work memory, and a barrier after each, as ggml does.
static void compute(const std::vector<ggml_tensor *> & nodes, int n_threads) {
    size_t n_bytes = 0;
    for (ggml_tensor * node : nodes) {
        const size_t n_node = dqrelo_cpu_work_bytes(node, n_threads);
        n_bytes             = n_node > n_bytes ? n_node : n_bytes;
    }
    const std::unique_ptr<uint8_t[]> work(new uint8_t[n_bytes]); // It has exactly as many bytes as were asked for.
    ggml_threadpool                  pool;
    pool.n_threads = n_threads;
    std::vector<std::thread> threads;
    for (int ith = 0; ith < n_threads; ith++) {
        threads.emplace_back([&, ith] {
            ggml_compute_params params = {};
            params.ith                 = ith;
            params.nth                 = n_threads;
            params.wsize               = n_bytes;
            params.wdata               = work.get();
            params.threadpool          = &pool;
            for (ggml_tensor * node : nodes) {
                dqrelo_cpu_forward(&params, node);
                ggml_barrier(&pool);
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
}

// Runs the case twice in a row, so that the second finds the work memory as the first left it.
template <typename CASE>
static std::vector<float> run(const CASE & c, int n_threads) {
    ggml_context *                   ctx   = ggml_init({ (size_t) 16 << 20, nullptr, false });
    const std::vector<ggml_tensor *> nodes = { c.build(ctx), c.build(ctx) };
    compute(nodes, n_threads);
    std::vector<float> out;
    for (const ggml_tensor * node : nodes) {
        out.insert(out.end(), (const float *) node->data, (const float *) node->data + ggml_nelements(node));
    }
    ggml_free(ctx);
    return out;
}

static void check_case(const std::string & name, op_case & c) {
    check::begin(name.c_str());
    c.fill(41);
    const std::vector<float> one = run(c, 1);
    c.out.assign(one.begin(), one.begin() + (ptrdiff_t) c.y.size());
    CHECK(matches(c));
    for (int n_threads : { 2, 3, 4 }) {
        const std::vector<float> many = run(c, n_threads);
        CHECK(memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0);
    }
}

// Ranks that 4 threads share unevenly, or that leave some of them without work; outputs that end inside a cache line.
static void test_matmul_shares(int64_t n_rows) {
    for (int rank : { 0, 1, 7, 40, 65 }) {
        for (int64_t n_out : { 7, 65, 130 }) {
            entry_options o;
            o.n_in           = 200;
            o.n_out          = n_out;
            o.rank           = rank < n_out ? rank : (int) n_out;
            entry_options o1 = o;
            o1.n_planes      = 2;
            o1.cscale        = true;
            o1.scale_per_row = true;
            const random_entry a(o, 1), b(o1, 2);
            op_case            c;
            c.ne      = { n_out, n_rows, 1, 1 };
            c.n_in    = o.n_in;
            c.tokens  = mixed_tokens(n_rows);
            c.entries = { &a, &b, nullptr };
            check_case("matmul/rows=" + std::to_string(n_rows) + "/rank=" + std::to_string(rank) + "/n_out=" + std::to_string(n_out), c);
        }
    }
}

static void check_fold(const char * name, fold_case & f) {
    std::vector<token_delta> tokens;
    for (int i = 0; i < 110; i++) {
        const int delta = i < 20 || i > 80 ? 0 : i < 25 || i == 40 ? -1 : i < 60 ? 1 : 2;
        tokens.push_back({ delta, 1.0f, delta >= 0 && i < 100 ? DQRELO_FOLD_ROWS : 0 });
    }
    f.set_tokens(tokens);
    check::begin(name);
    const std::vector<float> one = run(f, 1);
    f.c.out.assign(one.begin(), one.begin() + (ptrdiff_t) f.c.y.size());
    CHECK(f.matches());
    for (int n_threads : { 2, 3, 4 }) {
        const std::vector<float> many = run(f, n_threads);
        CHECK(memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0);
    }
}

// Groups that are folded beside rows that are not, in neighbouring runs of both.
static void test_fold() {
    entry_options o;
    o.n_in           = 200;
    o.n_out          = 130;
    o.rank           = 9;
    entry_options o1 = o;
    o1.n_planes      = 2;
    o1.rank          = 0;
    o1.plane_ranks   = { 40 };
    entry_options o2 = o;
    o2.sparse        = sparsity::LISTS;
    const random_entry a(o, 1), b(o1, 2), sparse(o2, 3);
    fold_case          f(GGML_TYPE_F32, o.n_in, o.n_out);
    f.c.entries = { &a, &b, &sparse };
    check_fold("fold/mixed", f);

    o.n_out = o1.n_out = o2.n_out = 40;
    const random_stack stack_a(o, 4, 4), stack_b(o1, 4, 5), stack_sparse(o2, 4, 6);
    fold_case          experts = fold_case::of_experts(GGML_TYPE_F32, o.n_in, o.n_out, 4, 2);
    experts.c.stacks           = { &stack_a, &stack_b, &stack_sparse };
    check_fold("fold/experts", experts);
}

int main() {
    test_fold();
    for (int64_t n_rows : { 1, 3, 50 }) {
        test_matmul_shares(n_rows);
    }
    test_all_cases();
    return check::finish();
}
