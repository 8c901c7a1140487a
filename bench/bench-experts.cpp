// bench-experts.cpp: what does a delta of experts cost on top of the base's product, and from how many tokens on does it pay to fold it?
//
//   base      y = mul_mat_id(W, x, ids) with W in the type --base
//   fused     the op DQRELO on y, as MATMUL_ID: one sign plane, U and V in F16 at an eighth of 16 bits
//   folded    both in one op that folds the signs into W
//
// Experts are drawn at random for each token, each as likely as the others. All three are measured in turn, round after round; figures are
// medians. Folding is forced here whatever the number of tokens (ggml_dqrelo_long_tokens says from how many on a graph does so).

#include "support/bench.h"

#include "dqrelo-op.h"

#include "cpu/isa.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <getopt.h>

#include <cstdlib>
#include <string>

using namespace bench;

namespace {

struct options {
    ggml_type            base = GGML_TYPE_F16;
    int64_t              n_in = 2048, n_out = 768, n_mat = 128, n_used = 8;
    std::vector<int64_t> tokens    = { 32, 64, 128, 256, 512 };
    int                  n_threads = 2;
    double               seconds   = 1.0; // of each measurement
};

constexpr const char * USAGE =
    "usage: bench-experts [-b BASE_TYPE] [-x N_INxN_OUT] [-e EXPERTS,USED] [-n TOKENS,...] [-t THREADS] [-d SECONDS]\n";

std::vector<int64_t> numbers(const char * list) {
    std::vector<int64_t> out;
    for (char * end = const_cast<char *>(list); *end; end += *end ? 1 : 0) {
        out.push_back(strtoll(end, &end, 10));
    }
    return out;
}

ggml_type type_of(const std::string & name) {
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (ggml_type_name((ggml_type) t) && name == ggml_type_name((ggml_type) t)) {
            return (ggml_type) t;
        }
    }
    fprintf(stderr, "bench-experts: %s is not a type of ggml\n", name.c_str());
    exit(2);
}

options parse(int argc, char ** argv) {
    options o;
    for (int c; (c = getopt(argc, argv, "b:x:e:n:t:d:")) != -1;) {
        const std::vector<int64_t> n = c == 'x' || c == 'e' || c == 'n' ? numbers(optarg) : std::vector<int64_t>{ 0, 0 };
        if (n.empty() || ((c == 'x' || c == 'e') && n.size() != 2)) {
            fputs(USAGE, stderr);
            exit(2);
        }
        switch (c) {
            case 'b': o.base = type_of(optarg); break;
            case 'x': o.n_in = n[0], o.n_out = n[1]; break;
            case 'e': o.n_mat = n[0], o.n_used = n[1]; break;
            case 'n': o.tokens = n; break;
            case 't': o.n_threads = atoi(optarg); break;
            case 'd': o.seconds = atof(optarg); break;
            default: fputs(USAGE, stderr); exit(2);
        }
    }
    return o;
}

// The weight and its delta: random signs and values, the same base in each expert.
struct problem {
    options            o;
    int64_t            rank;
    weight_bytes       w, sign, u, v;
    std::vector<float> scale;
    dqrelo_entry       e = {};

    static weight_bytes quantised(ggml_type type, int64_t n_rows, int64_t n_cols, int64_t n_copies, std::mt19937 & rng) {
        std::vector<float> values((size_t) (n_rows * n_cols));
        for (float & value : values) {
            value = ((float) (rng() % 2001) * 1e-3f - 1.0f) * 0.01f;
        }
        weight_bytes one(ggml_row_size(type, n_cols) * (size_t) n_rows), out;
        ggml_quantize_chunk(type, values.data(), one.data(), 0, n_rows, n_cols, nullptr);
        for (int64_t i = 0; i < n_copies; i++) {
            out.insert(out.end(), one.begin(), one.end());
        }
        return out;
    }

    explicit problem(const options & o) : o(o), rank(o.n_in * o.n_out / 16 / (o.n_in + o.n_out)) {
        std::mt19937 rng(1);
        w          = quantised(o.base, o.n_out, o.n_in, o.n_mat, rng);
        u          = quantised(GGML_TYPE_F16, o.n_out, rank, o.n_mat, rng);
        v          = quantised(GGML_TYPE_F16, rank, o.n_in, o.n_mat, rng);
        sign       = random_bytes((size_t) (o.n_mat * o.n_out * (o.n_in / 8)), rng);
        scale      = std::vector<float>((size_t) o.n_mat, 0.001f);
        e.sign[0]  = sign.data();
        e.scale[0] = scale.data();
        e.u        = u.data();
        e.v        = v.data();
        e.n_in     = o.n_in;
        e.n_out    = o.n_out;
        e.n_mat    = o.n_mat;
        e.n_planes = 1;
        e.rank     = (int32_t) rank;
        e.type_u = e.type_v = GGML_TYPE_F16;
    }
};

enum class method { base, fused, folded };

// A graph of one product.
class run {
public:
    run(const problem & p, method m, int64_t n_tokens) {
        const options & o = p.o;
        ctx   = ggml_init({ (size_t) (n_tokens * (o.n_in + 3 * o.n_out * o.n_used)) * sizeof(float) + ((size_t) 1 << 20), nullptr, false });
        graph = ggml_new_graph(ctx);
        ggml_tensor * x      = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, o.n_in, 1, n_tokens);
        ggml_tensor * ids    = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, o.n_used, n_tokens);
        ggml_tensor * tokens = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, n_tokens);
        ggml_set_no_alloc(ctx, true);
        ggml_tensor * w = ggml_new_tensor_3d(ctx, o.base, o.n_in, o.n_out, o.n_mat);
        ggml_set_no_alloc(ctx, false);
        w->data = const_cast<uint8_t *>(p.w.data());
        n_fold  = ggml_dqrelo_long_tokens(DQRELO_FOLD_EXPERT_ROWS, w->ne[2], o.n_used);
        fill(o, x, ids, tokens, n_fold);
        ggml_build_forward_expand(graph, product(p, m, w, x, ids, tokens));
        plan = ggml_graph_plan(graph, o.n_threads, nullptr);
        work.resize(plan.work_size);
        plan.work_data = work.data();
    }
    run(const run &)             = delete;
    run & operator=(const run &) = delete;
    ~run() { ggml_free(ctx); }

    void    compute() { ggml_graph_compute(graph, &plan); }
    int64_t fold_tokens() const { return n_fold; }

private:
    static void fill(const options & o, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * tokens, int64_t length) {
        std::mt19937         rng(2);
        std::vector<int32_t> experts((size_t) o.n_mat);
        for (int64_t i = 0; i < ggml_nelements(x); i++) {
            ((float *) x->data)[i] = (float) (rng() % 2001) * 1e-3f - 1.0f;
        }
        for (int32_t i = 0; i < (int32_t) o.n_mat; i++) {
            experts[(size_t) i] = i;
        }
        for (int64_t t = 0; t < ids->ne[1]; t++) {
            std::shuffle(experts.begin(), experts.end(), rng);
            std::copy_n(experts.begin(), o.n_used, (int32_t *) ids->data + t * o.n_used);
            ((float *) tokens->data)[2 * t]     = ggml_dqrelo_length(length + DQRELO_FOLD_ROWS); // delta index 0
            ((float *) tokens->data)[2 * t + 1] = 1.0f;                                          // request scale
        }
    }

    ggml_tensor * product(const problem & p, method m, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * tokens) {
        if (m == method::base) {
            return ggml_mul_mat_id(ctx, w, x, ids);
        }
        ggml_tensor * table = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, sizeof(dqrelo_entry));
        ggml_tensor * y     = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, w->ne[1], ids->ne[0], ids->ne[1]);
        memcpy(table->data, &p.e, sizeof(p.e));
        memset(y->data, 0, ggml_nbytes(y));
        const int32_t stride[] = { 0, 1, 0 };
        ggml_tensor * node     = ggml_dqrelo(ctx, DQRELO_FORM_MATMUL_ID, y, x, ids, table, tokens, stride);
        if (m == method::folded) {
            ggml_dqrelo_fold(node, w);
        }
        return node;
    }

    ggml_context *       ctx;
    ggml_cgraph *        graph;
    ggml_cplan           plan;
    std::vector<uint8_t> work;
    int64_t              n_fold = 0;
};

} // namespace

int main(int argc, char ** argv) {
    const options o = parse(argc, argv);
    const problem p(o);
    print_machine(argc, argv);
    printf("kernels: %s; base: %s; %d threads\n\n", dqrelo_isa_name(dqrelo_isa_chosen()), ggml_type_name(o.base), o.n_threads);
    printf("| experts, used | n_in x n_out, rank | base | tokens | rows an expert | base us | fused us | folded us | base / folded | "
           "base / (base + fused) |\n|---|---|---|---|---|---|---|---|---|---|\n");
    for (const int64_t n_tokens : o.tokens) {
        run                       base(p, method::base, n_tokens), fused(p, method::fused, n_tokens), folded(p, method::folded, n_tokens);
        run * const               runs[] = { &base, &fused, &folded };
        const std::vector<double> t      = medians_in_turn(3, 3 * o.seconds, [&](size_t i) { runs[i]->compute(); });
        // In brackets where a graph of so many tokens of one sequence does not fold.
        const bool folds = ggml_dqrelo_is_long(ggml_dqrelo_length(n_tokens), base.fold_tokens());
        printf("| %lld, %lld | %lld x %lld, %lld | %s | %lld | %.1f | %.0f | %.0f | %.0f | %s%.2f%s | %.2f |\n", (long long) o.n_mat,
               (long long) o.n_used, (long long) o.n_in, (long long) o.n_out, (long long) p.rank, ggml_type_name(o.base),
               (long long) n_tokens, (double) (n_tokens * o.n_used) / (double) o.n_mat, t[0] * 1e6, t[1] * 1e6, t[2] * 1e6,
               folds ? "" : "(", t[0] / t[2], folds ? "" : ")", t[0] / (t[0] + t[1]));
        fflush(stdout);
    }
    return 0;
}
