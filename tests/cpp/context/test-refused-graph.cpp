// test-refused-graph BASE
//
// What a context does where the graph pass refuses its graphs: an error that can be got over, no crash. The pass is this program's own,
// which takes the place of the library's. tests/context/test_context.py makes the model.
#include "dqrelo-hooks.h"
#include "llama.h"
#include "support/check.h"
#include "support/log-errors.h"

#include <vector>

static bool is_refused = false;

bool dqrelo_graph_pass(const llama_model & model, const llm_graph_params & params) {
    (void) model;
    (void) params;
    return !is_refused;
}

static llama_context * open(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 64;
    params.n_threads = params.n_threads_batch = 1;
    return llama_init_from_model(model, params);
}

static int decode(llama_context * ctx) {
    llama_token tokens[] = { 5, 6, 7 };
    llama_memory_clear(llama_get_memory(ctx), true);
    return llama_decode(ctx, llama_batch_get_one(tokens, 3));
}

static std::vector<float> logits(llama_context * ctx) {
    const float * last = llama_get_logits_ith(ctx, -1);
    return std::vector<float>(last, last + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
}

// A control vector that changes nothing: with it, llama.cpp reserves its graphs again.
static void make_reserve_again(llama_context * ctx, const llama_model * model) {
    const int                n_embd = llama_model_n_embd(model);
    const std::vector<float> zeros((size_t) n_embd * (size_t) llama_model_n_layer(model));
    llama_set_adapter_cvec(ctx, zeros.data(), zeros.size(), n_embd, 1, llama_model_n_layer(model));
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s BASE\n", argv[0]);
        return 2;
    }
    log_errors_only();
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers       = 0;
    llama_model * model        = llama_model_load_from_file(argv[1], mparams);

    check::begin("no context is made");
    is_refused = true;
    CHECK(!open(model));

    check::begin("a decode whose graphs are to be reserved fails, time after time");
    is_refused          = false;
    llama_context * ctx = open(model);
    make_reserve_again(ctx, model);
    CHECK(decode(ctx) == 0);
    const std::vector<float> expected = logits(ctx);
    make_reserve_again(ctx, model);
    is_refused = true;
    CHECK(decode(ctx) < -1);
    CHECK(decode(ctx) < -1);

    check::begin("and the context is as good as new once they are not refused");
    is_refused = false;
    CHECK(decode(ctx) == 0);
    CHECK(logits(ctx) == expected);

    check::begin("a decode that only builds a graph fails");
    is_refused = true;
    llama_set_embeddings(ctx, true); // This makes llama.cpp build another graph.
    CHECK(decode(ctx) < -1);

    llama_free(ctx);
    llama_model_free(model);
    return check::finish();
}
