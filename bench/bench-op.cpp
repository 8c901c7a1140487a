// bench-op.cpp: what does a delta cost on top of the base's product, against memory and against ordinary ggml ops?
//
//   base      y = W x with W in the type --base
//   fused     the op DQRELO: y + scale (S x) + U (V x), or y + A (B x), or y + D x with a sparse D
//   composed  the same from ordinary ops: Q1_0 mul_mat, mul by the scales, two mul_mats with the factors (A and B in Q8_0), adds; of a
//             sparse weight, a mul_mat with a dense one in F16
//   folded    y + delta in one op that folds the signs into W, from DQRELO_FOLD_ROWS rows on
//   read      a plain read of the delta's bytes by the same threads, as an op of the same graph machinery
//
// Rank as the paper's ratio gives it (1/8 of 16 bits a weight). Every product is done for several different weights in turn, more than the
// caches hold, as in a model. They are measured in turn, round after round, each behind the base's product, which leaves nothing of a delta
// in the caches; figures are medians. "of read" is the speed of the fused op in bytes of the delta a second, as a part of the plain read's.

#include "support/bench.h"
#include "support/op-problem.h"

#include "cpu/isa.h"

#include <getopt.h>

#include <cmath>
#include <cstdlib>
#include <string>

using namespace bench;

namespace {

struct options {
    ggml_type                                base    = GGML_TYPE_F16;
    delta_kind                               kind    = {};
    std::vector<int>                         threads = { 1, 2 };
    std::vector<int64_t>                     rows    = { 1, 8, 512 };
    std::vector<std::pair<int64_t, int64_t>> shapes  = { { 2048, 2048 }, { 4096, 4096 }, { 4096, 14336 }, { 14336, 4096 } };
    double                                   seconds = 1.0; // seconds of each measurement
};

constexpr const char * USAGE =
    "usage: bench-op [-b BASE_TYPE] [-f FACTOR_TYPE] [-p PLANES] [-s matrix|row] [-c] [-k RANKS,...] [-t "
    "THREADS,...] [-e SHARE] [-m] [-n ROWS,...] [-x N_INxN_OUT,...] [-d SECONDS]\n"
    "  -b f16     type of the base weight\n"
    "  -f f16     type of U and V: f16, bf16, q8_0, q4_0\n"
    "  -p 1       sign planes\n"
    "  -s matrix  scales: one a matrix, or one a row\n"
    "  -c         with scales of the columns too\n"
    "  -e SHARE   a sparse weight: this share of the elements are entries (0.08), of type -f: f16, bf16, f8\n"
    "  -m         its places are a mask, not lists\n"
    "  -k RANKS   sign factors whose planes have these ranks, which descend, instead of planes, U and V; multiples\n"
    "             of 32, because the composed path has their rows in Q8_0\n";

ggml_type type_of(const char * name) {
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (ggml_type_name((ggml_type) t) && strcmp(ggml_type_name((ggml_type) t), name) == 0) {
            return (ggml_type) t;
        }
    }
    fprintf(stderr, "bench-op: %s is not a type of ggml\n", name);
    exit(2);
}

int rank_of(const std::string & item) {
    const int rank = atoi(item.c_str());
    if (rank <= 0 || rank % 32 != 0) {
        fprintf(stderr, "bench-op: -k %s: expected a multiple of 32\n", item.c_str());
        exit(2);
    }
    return rank;
}

template <typename F>
void for_each_item(const char * list, F && take) {
    const std::string text = std::string(list) + ",";
    for (size_t from = 0, to; (to = text.find(',', from)) != std::string::npos; from = to + 1) {
        take(text.substr(from, to - from));
    }
}

options parse(int argc, char ** argv) {
    options o;
    for (int c; (c = getopt(argc, argv, "b:f:p:s:ck:e:mt:n:x:d:")) != -1;) {
        switch (c) {
            case 'b': o.base = type_of(optarg); break;
            case 'f': o.kind.factors = strcmp(optarg, "f8") == 0 ? GGML_TYPE_I8 : type_of(optarg); break;
            case 'm': o.kind.has_mask = true; break;
            case 'e':
                o.kind.n_planes = 0;
                o.kind.entries  = atof(optarg);
                break;
            case 'p': o.kind.n_planes = atoi(optarg); break;
            case 's': o.kind.row_scales = strcmp(optarg, "row") == 0; break;
            case 'c': o.kind.column_scales = true; break;
            case 'k':
                o.kind.n_planes = 0;
                for_each_item(optarg, [&](const std::string & item) { o.kind.plane_ranks.push_back(rank_of(item)); });
                break;
            case 'd': o.seconds = atof(optarg); break;
            case 't':
                o.threads.clear();
                for_each_item(optarg, [&](const std::string & item) { o.threads.push_back(atoi(item.c_str())); });
                break;
            case 'n':
                o.rows.clear();
                for_each_item(optarg, [&](const std::string & item) { o.rows.push_back(atoll(item.c_str())); });
                break;
            case 'x':
                o.shapes.clear();
                for_each_item(optarg, [&](const std::string & item) {
                    const size_t x = item.find('x');
                    o.shapes.push_back({ atoll(item.c_str()), x == std::string::npos ? 0 : atoll(item.c_str() + x + 1) });
                });
                break;
            default: fputs(USAGE, stderr); exit(2);
        }
    }
    return o;
}

std::vector<float> random_activation(int64_t n_in, int64_t n_rows, float outlier) {
    std::mt19937                    rng(2);
    std::normal_distribution<float> normal;
    std::vector<float>              x((size_t) (n_in * n_rows));
    for (size_t j = 0; j < x.size(); j++) {
        x[j] = normal(rng) * (j % 128 == 77 ? outlier : 1.0f);
    }
    return x;
}

constexpr method METHODS[] = { method::base, method::fused, method::composed, method::read, method::folded };

void measure(const op_problem & p, int64_t n_rows, int n_threads, double seconds) {
    const std::vector<float>          x = random_activation(p.n_in, n_rows, 100.0f);
    std::vector<std::unique_ptr<run>> runs;
    for (const method m : METHODS) {
        if (m == method::folded && n_rows < DQRELO_FOLD_ROWS) {
            continue;
        }
        runs.push_back(std::make_unique<run>(p, m, x, n_rows, n_threads));
    }
    // Every other turn is the base's.
    const size_t              n = runs.size() - 1;
    const std::vector<double> turns =
        medians_in_turn(2 * n, seconds * (double) n, [&](size_t i) { runs[i % 2 == 0 ? 0 : i / 2 + 1]->compute(); });
    std::vector<double> t = { turns[0] };
    for (size_t i = 0; i < n; i++) {
        t.push_back(turns[2 * i + 1]);
    }

    const int    n_codes = p.kind.n_codes();
    const double n_bytes = (double) p.delta_bytes();
    const auto   us      = [&](size_t i) { return t[i] / p.n_weights(n_rows) * 1e6; };
    printf("| %lld x %lld, %lld | %d | %lld | %.1f | %.1f | %.1f | %.2f | %.2f | %.1f | %.1f | %.0f %% | %.4f %% | %.4f %% |",
           (long long) p.n_in, (long long) p.n_out, (long long) (n_codes > 0 ? n_codes : p.rank), n_threads, (long long) n_rows, us(0),
           us(1), us(2), us(1) / us(0), us(2) / us(1), n_bytes / us(1) * 1e-3, n_bytes / us(3) * 1e-3, 100.0 * us(3) / us(1),
           100.0 * p.error(x, runs[1]->first_row()), 100.0 * p.error(x, runs[2]->first_row()));
    if (runs.size() > 4) {
        printf(" %.1f | %.2f | %.2f |\n", us(4), us(0) / us(4), us(0) / (us(0) + us(1)));
    } else {
        printf(" - | - | - |\n");
    }
    fflush(stdout);
}

} // namespace

int main(int argc, char ** argv) {
    const options o = parse(argc, argv);
    print_machine(argc, argv);
    printf("kernels: %s; base: %s; factors: %s; planes: %d; scales a %s%s; codes: %d; entries: %g by %s\n\n",
           dqrelo_isa_name(dqrelo_isa_chosen()), ggml_type_name(o.base), ggml_type_name(o.kind.factors), o.kind.n_planes,
           o.kind.row_scales ? "row" : "matrix", o.kind.column_scales ? ", and a column" : "", o.kind.n_codes(), o.kind.entries,
           o.kind.has_mask ? "mask" : "lists");
    printf("| n_in x n_out, rank or codes | threads | rows | base us | fused us | composed us | fused / base | composed / fused | fused "
           "GB/s | read "
           "GB/s | of read | error fused | error "
           "composed | folded us | base / folded | base / (base + fused) "
           "|\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (const auto & ne : o.shapes) {
        const op_problem p(ne.first, ne.second, o.base, o.kind);
        for (const int n_threads : o.threads) {
            for (const int64_t n_rows : o.rows) {
                measure(p, n_rows, n_threads, o.seconds);
            }
        }
    }
    return 0;
}
