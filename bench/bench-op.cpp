// bench-op.cpp: what does a delta cost on top of the base's product, and is the fused op faster and more exact than ordinary ggml ops?
//
//   base      y = W x with W in the type named by the first argument (q8_0)
//   fused     the op DQRELO: y + scale (S x) + U (V x)
//   composed  the same from ordinary ops: Q1_0 mul_mat, scale, two F16 mul_mats, two adds
//
// Rank as the paper's ratio 1/8 gives it. Every product is done for several different weights in turn, more than the caches hold, as in a model.
// "GB/s" is the delta's bytes over the fused time; "limit" the time in which those bytes can be read at the speed that is printed first.
//
//   bench-op [base type] [n_threads]

#include "bench.h"

#include "dqrelo-op.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <cmath>
#include <cstdlib>

static constexpr size_t N_BYTES_IN_TURN = (size_t) 96 << 20; // of deltas: three times the largest cache met so far

struct delta {
    std::vector<uint8_t>  sign, q1_0;
    std::vector<uint16_t> u, v;
    float                 scale = 0.001f;
    dqrelo_entry          e     = {};
};

struct problem {
    int64_t                           n_in, n_out, rank;
    int                               n_weights;
    std::vector<delta>                deltas;
    std::vector<std::vector<uint8_t>> base;
    ggml_type                         base_type;
    int64_t                           delta_bytes() const {
        return n_in * n_out / 8 + 2 * rank * (n_in + n_out);
    }
};

static std::vector<uint16_t> random_f16(size_t n, std::mt19937 & rng) {
    std::vector<uint16_t> out(n);
    for (uint16_t & h : out) {
        h = (uint16_t) ((rng() & 0x83ff) | (8 + rng() % 3) << 10); // 2^-7 .. 2^-4
    }
    return out;
}

// Q1_0: blocks of 128 signs, {F16 d, 16 bytes of bits in our order}; here d = 1, so that the scale is applied to the sum in F32
static std::vector<uint8_t> as_q1_0(const std::vector<uint8_t> & sign) {
    const uint16_t       one = ggml_fp32_to_fp16(1.0f);
    std::vector<uint8_t> out(sign.size() / 16 * 18);
    for (size_t b = 0; b < sign.size() / 16; b++) {
        memcpy(out.data() + b * 18, &one, sizeof(one));
        memcpy(out.data() + b * 18 + 2, sign.data() + b * 16, 16);
    }
    return out;
}

static problem make_problem(int64_t n_in, int64_t n_out, ggml_type base_type) {
    problem p   = { n_in, n_out, n_in * n_out / (16 * (n_in + n_out)), 0, {}, {}, base_type };
    p.n_weights = (int) std::min<int64_t>(64, std::max<int64_t>(2, (int64_t) N_BYTES_IN_TURN / p.delta_bytes()));
    std::mt19937       rng(1);
    std::vector<float> w((size_t) (n_in * n_out));
    for (float & v : w) {
        v = (float) (rng() % 2001) * 1e-5f - 0.01f;
    }
    std::vector<uint8_t> quantised((size_t) (ggml_row_size(base_type, n_in) * (size_t) n_out));
    ggml_quantize_chunk(base_type, w.data(), quantised.data(), 0, n_out, n_in, nullptr);
    for (int k = 0; k < p.n_weights; k++) {
        p.base.push_back(quantised);
        delta d;
        d.sign = bench::random_bytes((size_t) (n_in * n_out / 8), rng);
        d.q1_0 = as_q1_0(d.sign);
        d.u    = random_f16((size_t) (p.rank * n_out), rng);
        d.v    = random_f16((size_t) (p.rank * n_in), rng);
        p.deltas.push_back(std::move(d));
    }
    for (delta & d : p.deltas) {
        d.e.sign[0]  = d.sign.data();
        d.e.scale[0] = &d.scale;
        d.e.u        = d.u.data();
        d.e.v        = d.v.data();
        d.e.n_in     = n_in;
        d.e.n_out    = n_out;
        d.e.n_planes = 1;
        d.e.rank     = (int32_t) p.rank;
        d.e.type_u = d.e.type_v = GGML_TYPE_F16;
    }
    return p;
}

enum class method { base,
                    fused,
                    composed };

static ggml_tensor * weight(ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, void * data) {
    ggml_set_no_alloc(ctx, true);
    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
    ggml_set_no_alloc(ctx, false);
    t->data = data;
    return t;
}

// One graph with the products of all weights of the problem; returns the first product's node.
struct run {
    ggml_context *       ctx;
    ggml_cgraph *        graph;
    ggml_cplan           plan;
    std::vector<uint8_t> work;
    ggml_tensor *        first = nullptr;

    run(problem & p, method m, const std::vector<float> & x, int64_t n_rows, int n_threads) {
        const size_t n_floats = (size_t) (n_rows * (p.n_in + p.n_out) + p.n_weights * n_rows * (5 * p.n_out + 2 * p.rank));
        ctx                   = ggml_init({ n_floats * sizeof(float) + ((size_t) 4 << 20), nullptr, false });
        graph                 = ggml_new_graph(ctx);
        ggml_tensor * tx      = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p.n_in, n_rows);
        ggml_tensor * y       = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p.n_out, n_rows);
        memcpy(tx->data, x.data(), ggml_nbytes(tx));
        memset(y->data, 0, ggml_nbytes(y));
        ggml_tensor * owner = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, n_rows);
        for (int64_t t = 0; t < n_rows; t++) {
            ((float *) owner->data)[2 * t]     = 0.0f;
            ((float *) owner->data)[2 * t + 1] = 1.0f;
        }
        for (int k = 0; k < p.n_weights; k++) {
            delta &       d = p.deltas[(size_t) k];
            ggml_tensor * out;
            if (m == method::base) {
                out = ggml_mul_mat(ctx, weight(ctx, p.base_type, p.n_in, p.n_out, p.base[(size_t) k].data()), tx);
            } else if (m == method::fused) {
                ggml_tensor * table = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, sizeof(dqrelo_entry));
                memcpy(table->data, &d.e, sizeof(d.e));
                const int32_t stride[] = { 1, 0, 0 };
                out                    = ggml_dqrelo(ctx, DQRELO_FORM_MATMUL, y, tx, table, owner, stride);
            } else {
                ggml_tensor * sx = ggml_mul_mat(ctx, weight(ctx, GGML_TYPE_Q1_0, p.n_in, p.n_out, d.q1_0.data()), tx);
                ggml_tensor * vx = ggml_mul_mat(ctx, weight(ctx, GGML_TYPE_F16, p.n_in, p.rank, d.v.data()), tx);
                ggml_tensor * uv = ggml_mul_mat(ctx, weight(ctx, GGML_TYPE_F16, p.rank, p.n_out, d.u.data()), vx);
                out              = ggml_add(ctx, y, ggml_add(ctx, ggml_scale(ctx, sx, d.scale), uv));
            }
            first = k == 0 ? out : first;
            ggml_build_forward_expand(graph, out);
        }
        plan = ggml_graph_plan(graph, n_threads, nullptr);
        work.resize(plan.work_size);
        plan.work_data = work.data();
    }
    run(const run &)             = delete;
    run & operator=(const run &) = delete;
    ~run() {
        ggml_free(ctx);
    }
    void compute() {
        ggml_graph_compute(graph, &plan);
    }
};

// ||got - exact|| / ||exact|| of row 0 of the first product
static double error(const problem & p, const std::vector<float> & x, const float * got) {
    const delta &       d = p.deltas[0];
    std::vector<double> t((size_t) p.rank, 0.0);
    for (int64_t k = 0; k < p.rank; k++) {
        for (int64_t j = 0; j < p.n_in; j++) {
            t[(size_t) k] += (double) ggml_fp16_to_fp32(d.v[(size_t) (k * p.n_in + j)]) * x[(size_t) j];
        }
    }
    double e = 0.0, w = 0.0;
    for (int64_t i = 0; i < p.n_out; i++) {
        double signs = 0.0, sum = 0.0;
        for (int64_t j = 0; j < p.n_in; j++) {
            signs += (d.sign[(size_t) (i * (p.n_in / 8) + j / 8)] >> (j % 8)) & 1 ? x[(size_t) j] : -x[(size_t) j];
        }
        for (int64_t k = 0; k < p.rank; k++) {
            sum += ggml_fp16_to_fp32(d.u[(size_t) (i * p.rank + k)]) * t[(size_t) k];
        }
        sum += d.scale * signs;
        e += (got[i] - sum) * (got[i] - sum);
        w += sum * sum;
    }
    return std::sqrt(e / w);
}

static void measure(problem & p, int64_t n_rows, int n_threads, double read_speed) {
    std::mt19937                    rng(2);
    std::normal_distribution<float> normal;
    std::vector<float>              x((size_t) (p.n_in * n_rows));
    for (size_t j = 0; j < x.size(); j++) {
        x[j] = normal(rng) * (j % 128 == 77 ? 100.0f : 1.0f);
    }
    double seconds[3], errors[3] = {};
    for (int m = 0; m < 3; m++) {
        if (m == 2 && p.n_in % 128 != 0) { // Q1_0 has no such row
            seconds[m] = NAN;
            errors[m]  = NAN;
            continue;
        }
        run r(p, (method) m, x, n_rows, n_threads);
        seconds[m] = bench::best(n_threads == 1 ? bench::clock::thread : bench::clock::wall, 0.5, [&] { r.compute(); }) / p.n_weights;
        errors[m]  = m == 0 ? 0.0 : error(p, x, (const float *) r.first->data);
    }
    const double n_bytes = (double) p.delta_bytes();
    printf("%6lld x %-6lld %5lld %5lld %9.1f %9.1f %9.1f %8.2f %9.2f %8.1f %9.1f %9.4f%% %9.4f%%\n", (long long) p.n_in, (long long) p.n_out, (long long) p.rank,
           (long long) n_rows, seconds[0] * 1e6, seconds[1] * 1e6, seconds[2] * 1e6, seconds[1] / seconds[0], seconds[2] / seconds[1],
           n_bytes / seconds[1] * 1e-9, n_bytes / read_speed * 1e6, 100.0 * errors[1], 100.0 * errors[2]);
    fflush(stdout);
}

int main(int argc, char ** argv) {
    const char * type_name = argc > 1 ? argv[1] : "q8_0";
    const int    n_threads = argc > 2 ? atoi(argv[2]) : 2;
    ggml_type    type      = GGML_TYPE_COUNT;
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (ggml_type_name((ggml_type) t) && strcmp(ggml_type_name((ggml_type) t), type_name) == 0) {
            type = (ggml_type) t;
        }
    }
    if (type == GGML_TYPE_COUNT || n_threads < 1) {
        fprintf(stderr, "usage: bench-op [base type, for example q8_0] [n_threads]\n");
        return 2;
    }
    bench::print_machine(argc, argv);
    double read_speed;
    {
        const std::vector<uint64_t> memory((size_t) 32 << 20, 1);
        uint64_t                    sum = 0;
        read_speed                      = (double) memory.size() * 8.0 / bench::best(bench::clock::thread, 1.0, [&] { sum += bench::read_all(memory); });
        printf("memory read, one thread: %.1f GB/s; threads of the op: %d; base type: %s%s\n", read_speed * 1e-9, n_threads, type_name, sum == 0 ? " " : "");
    }
    printf("%6s x %-6s %5s %5s %9s %9s %9s %8s %9s %8s %9s %10s %10s\n", "n_in", "n_out", "rank", "rows", "base us", "fused us", "comp. us", "fus/base", "comp/fus",
           "GB/s", "limit us", "err fused", "err comp.");
    for (const auto & ne : { std::pair<int64_t, int64_t>(576, 1536), { 2048, 2048 }, { 4096, 4096 }, { 4096, 14336 } }) {
        problem p = make_problem(ne.first, ne.second, type);
        for (int64_t n_rows : { 1, 2, 4, 8, 16, 128 }) {
            measure(p, n_rows, n_threads, read_speed);
        }
    }
    return 0;
}
