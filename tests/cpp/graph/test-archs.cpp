// test-archs BASE DELTA_A DELTA_B MERGED_A MERGED_B SCALE_A SCALE_B BLENDED
//
// Runs one architecture with deltas and compares logits with the same weights merged into plain models, for several shapes of batches. All
// models see the very same batch, so the graphs have the same shapes. Prints a line a case: name, NMSE of the rows with a delta against the
// merged models, and the largest difference of the rows without one from the base's. BLENDED is the base with SCALE_A times the first delta
// and SCALE_B times the second. tests/graph/test_upstream_models.py makes the files and judges the figures. Exit code 3: the delta was
// refused; the line says why.
#include "cpu/transposed-signs.h"
#include "dqrelo.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int N_DELTAS = 16; // deltas that are loaded at once
constexpr int N_SEQ    = N_DELTAS + 1;

// What a sequence has: the first delta, the second one, or a blend of both.
enum kind { BASE = -1, A, B, BLEND };

struct model_deleter {
    void operator()(llama_model * m) const { llama_model_free(m); }
};
struct context_deleter {
    void operator()(llama_context * c) const { llama_free(c); }
};

struct runner {
    std::unique_ptr<llama_model, model_deleter>     model;
    std::unique_ptr<llama_context, context_deleter> ctx;

    explicit runner(const char * path) {
        llama_model_params mparams = llama_model_default_params();
        mparams.n_gpu_layers       = 0;
        model.reset(llama_model_load_from_file(path, mparams));
        llama_context_params cparams = llama_context_default_params();
        cparams.n_ctx                = 64 * N_SEQ;
        cparams.n_batch              = 512;
        cparams.n_ubatch             = 128;
        cparams.n_seq_max            = N_SEQ;
        cparams.n_threads = cparams.n_threads_batch = 1; // Several of these programs run side by side, and waiting threads spin.
        ctx.reset(model ? llama_init_from_model(model.get(), cparams) : nullptr);
        if (!ctx) {
            printf("failed: cannot load %s\n", path);
            exit(1);
        }
    }
};

// A case decodes n_seq sequences of n_tokens random tokens each (or random embeddings).
struct test_case {
    std::string name;
    int         n_seq;
    int         n_tokens;
    bool        embeddings  = false;
    bool        all_outputs = false; // There are as many outputs as tokens, and their rows are selected with all ids.
};

// Returns the logits of all rows [n_seq*n_tokens, n_vocab], or nothing if decoding fails. Only sequences from `first` on are decoded; the
// rows of others are zeros.
std::vector<float> logits(runner & r, const test_case & c, int first = 0) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(r.model.get()));
    const int n_embd  = llama_model_n_embd(r.model.get());
    const int n       = c.n_seq * c.n_tokens;

    std::mt19937     gen(c.n_seq * 1000 + c.n_tokens);
    llama_batch      batch = llama_batch_init(n, c.embeddings ? n_embd : 0, 1);
    std::vector<int> row_of; // It has a row for each token of the batch.
    for (int row = 0; row < n; row++) {
        const int i = (int) row_of.size();
        if (c.embeddings) {
            for (int j = 0; j < n_embd; j++) {
                batch.embd[(size_t) i * n_embd + j] = std::normal_distribution<float>(0, 0.3f)(gen);
            }
        } else {
            batch.token[i] = std::uniform_int_distribution<int>(0, n_vocab - 1)(gen);
        }
        batch.pos[i]       = row / c.n_seq;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = row % c.n_seq;
        batch.logits[i]    = c.all_outputs || row % 3 != 1; // Rows without an output are left out inside the graph.
        if (row % c.n_seq >= first) {
            row_of.push_back(row);
        }
    }
    batch.n_tokens = (int) row_of.size();
    if (llama_get_memory(r.ctx.get())) {
        llama_memory_clear(llama_get_memory(r.ctx.get()), true);
    }
    // Embeddings of models with several positions a token (M-RoPE) take all of them, so batch.pos is [n_pos][n].
    const llama_rope_type  rope = llama_model_rope_type(r.model.get());
    std::vector<llama_pos> pos;
    for (int p = 0; p < (rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1); p++) {
        pos.insert(pos.end(), batch.pos, batch.pos + batch.n_tokens);
    }
    llama_pos * const batch_pos = batch.pos;
    batch.pos                   = pos.data();

    std::vector<float> out;
    if (llama_decode(r.ctx.get(), batch) == 0) {
        out.resize((size_t) n * n_vocab, 0.0f);
        for (int i = 0; i < batch.n_tokens; i++) {
            if (batch.logits[i]) {
                std::copy_n(llama_get_logits_ith(r.ctx.get(), i), n_vocab, out.begin() + (size_t) row_of[(size_t) i] * n_vocab);
            }
        }
    }
    batch.pos = batch_pos;
    llama_batch_free(batch);
    return out;
}

// Experts of the model, or 1.
int n_expert(const llama_model * model) {
    char arch[64]   = "";
    char number[32] = "1";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    llama_model_meta_val_str(model, (std::string(arch) + ".expert_count").c_str(), number, sizeof(number));
    return std::max(1, atoi(number));
}

struct row_error {
    double error = 0, power = 0;
};

void run_case(const test_case & c, runner & base, runner & plain, const std::vector<runner *> & merged,
              const std::vector<int> & kind_of_seq, bool own_batch) {
    const std::vector<float> got     = logits(base, c);
    const std::vector<float> without = logits(plain, c);
    // Where deltas need ubatches of their own, rows without one have theirs, too: the base's product depends on the ubatch's size.
    const std::vector<float> base_alone =
        own_batch && kind_of_seq[c.n_seq - 1] == BASE && !without.empty() ? logits(plain, c, c.n_seq - 1) : without;
    std::vector<std::vector<float>> expected;
    for (runner * m : merged) {
        expected.push_back(logits(*m, c));
    }
    if (without.empty()) {
        printf("%s: skipped: the base alone cannot run it\n", c.name.c_str());
        return;
    }
    if (got.empty()) {
        printf("%s: failed: decoding with deltas failed\n", c.name.c_str());
        return;
    }
    const size_t n_vocab = got.size() / (c.n_seq * c.n_tokens);
    row_error    with_delta, changed;
    double       without_delta = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const int kind = kind_of_seq[(i / n_vocab) % c.n_seq];
        if (kind == BASE) {
            without_delta = std::max(without_delta, (double) std::fabs(got[i] - base_alone[i]));
            continue;
        }
        const double e = expected[kind][i];
        with_delta.error += (got[i] - e) * (got[i] - e);
        with_delta.power += e * e;
        changed.error += (without[i] - e) * (without[i] - e);
    }
    printf("%s: nmse %.3e base_nmse %.3e base_diff %.3e\n", c.name.c_str(), with_delta.error / with_delta.power,
           changed.error / with_delta.power, without_delta);
}

} // namespace

// Returns whether a file that was opened for the CPU is refused for a model that lies elsewhere, or everywhere if nothing was arranged.
static bool refuses_arranged_file(const llama_model * model, const char * path_model, const char * path) {
    char err[1024]        = "";
    auto params           = dqrelo_file_default_params();
    params.on_cpu         = true;
    dqrelo_base *  base   = dqrelo_base_open(path_model, err, sizeof(err));
    dqrelo_file *  file   = dqrelo_file_open(path, params, err, sizeof(err));
    dqrelo_delta * loaded = base && file ? dqrelo_load_opened(model, base, file, dqrelo_load_default_params(), err, sizeof(err)) : nullptr;
    dqrelo_base_free(base);
    const bool is_refused = !loaded && strstr(err, "was opened for a model in the CPU's memory") != nullptr;
    dqrelo_free(loaded);
    return is_refused == (dqrelo_transposes_signs() && !dqrelo_on_cpu(model));
}

int main(int argc, char ** argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: %s BASE DELTA_A DELTA_B MERGED_A MERGED_B SCALE_A SCALE_B BLENDED\n", argv[0]);
        return 2;
    }
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        },
        nullptr);
    setvbuf(stdout, nullptr, _IOLBF, 0);

    runner                      base(argv[1]), plain(argv[1]), merged_a(argv[4]), merged_b(argv[5]), blended(argv[8]);
    const std::vector<runner *> merged   = { &merged_a, &merged_b, &blended };
    const float                 scales[] = { (float) atof(argv[6]), (float) atof(argv[7]) };

    if (!refuses_arranged_file(base.model.get(), argv[1], argv[2])) {
        printf("failed: a file whose signs are arranged for the CPU was loaded for other memory\n");
        return 3;
    }
    std::vector<dqrelo_delta *> deltas;
    char                        err[1024];
    for (int i = 0; i < N_DELTAS; i++) {
        deltas.push_back(dqrelo_load(base.model.get(), argv[1], argv[2 + i % 2], dqrelo_load_default_params(), err, sizeof(err)));
        if (!deltas.back()) {
            printf("refused: %s\n", err);
            return 3;
        }
    }
    int32_t n_applied = 0, n_inert = 0;
    if (!dqrelo_check(base.ctx.get(), deltas[0], &n_applied, &n_inert, err, sizeof(err))) {
        printf("refused: %s\n", err);
        return 3;
    }
    printf("applied %d inert %d\n", n_applied, n_inert);
    for (int i = 0; i < n_inert; i++) {
        printf("inert %s\n", dqrelo_inert_weight(deltas[0], i));
    }

    // Binds delta i, or the blend of it and its neighbour, to a sequence.
    const auto bind = [&](int seq, int i, bool is_blend) {
        const int         first    = i - i % 2;
        const dqrelo_part parts[]  = { { deltas[(size_t) first], scales[0] }, { deltas[(size_t) first + 1], scales[1] } };
        const bool        is_bound = is_blend ? dqrelo_bind_parts(base.ctx.get(), seq, parts, 2, err, sizeof(err))
                                              : dqrelo_bind(base.ctx.get(), seq, deltas[(size_t) i], 1.0f, err, sizeof(err));
        if (!is_bound) {
            printf("refused: %s\n", err);
            exit(3);
        }
    };
    // Sequences 0..15 have a delta each, the last two of every eight both of theirs, and the last one has none.
    std::vector<int> kind_of_seq(N_SEQ, BASE);
    for (int s = 0; s < N_DELTAS; s++) {
        kind_of_seq[(size_t) s] = s % 8 >= 6 ? BLEND : s % 2;
        bind(s, s, s % 8 >= 6);
    }
    const bool own_batch = dqrelo_needs_own_batch(base.ctx.get(), deltas[0]);
    printf("own_batch %d\n", own_batch);
    const int                    n_head   = llama_model_n_head(base.model.get());
    const std::vector<test_case> of_first = {
        { "one_token", 1, 1 },    { "n_head", 1, n_head },      { "n_expert", 1, n_expert(base.model.get()) },
        { "many_tokens", 1, 40 }, { "embeddings", 1, 5, true },
    };
    for (const test_case & c : of_first) {
        run_case(c, base, plain, merged, kind_of_seq, own_batch);
    }
    for (const test_case & c : {
             test_case{ "n_outputs", N_SEQ, n_head, false, true },
             test_case{ "mixed_decode", N_SEQ, 1 },
             test_case{ "mixed_batch", N_SEQ, 7 },
         }) {
        run_case(c, base, plain, merged, kind_of_seq, own_batch);
    }
    // A bound delta stays, and only sequences of the context can be bound.
    const bool kept = !dqrelo_free(deltas[0]) && dqrelo_bound(base.ctx.get(), 0, 0) == deltas[0] && dqrelo_n_bound(deltas[0]) == 1;
    printf("kept %d\n", kept && !dqrelo_bind(base.ctx.get(), N_SEQ, deltas[0], 1.0f, err, sizeof(err)));
    printf("other_context %d\n", !dqrelo_bind(plain.ctx.get(), 0, deltas[0], 1.0f, err, sizeof(err)));

    bind(0, 0, true);
    kind_of_seq[0] = BLEND;
    for (test_case c : of_first) {
        c.name = "blend_" + c.name;
        run_case(c, base, plain, merged, kind_of_seq, own_batch);
    }

    // Without deltas the context is the base's again.
    for (int s = 0; s < N_SEQ; s++) {
        dqrelo_bind(base.ctx.get(), s, nullptr, 1.0f, err, sizeof(err));
    }
    run_case({ "unbound", N_SEQ, 3 }, base, plain, merged, std::vector<int>(N_SEQ, BASE), false);
    bool freed = true;
    for (dqrelo_delta * delta : deltas) {
        freed = dqrelo_free(delta) && freed;
    }
    printf("freed %d\n", freed);
    return 0;
}
