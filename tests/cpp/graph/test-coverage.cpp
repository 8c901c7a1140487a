// test-coverage BASE DELTA OTHER
//
// What a check finds belongs to the loaded delta. The graphs can carry DELTA; OTHER changes a tensor besides that they cannot.
// tests/graph/test_upstream_models.py makes the files.
#include "dqrelo.h"
#include "support/check.h"
#include "support/log-errors.h"

#include <cstdlib>
#include <cstring>
#include <thread>

static dqrelo_delta * load(const llama_model * model, const char * base, const char * path) {
    char           err[1024] = "";
    dqrelo_delta * delta     = dqrelo_load(model, base, path, dqrelo_load_default_params(), err, sizeof(err));
    if (!delta) {
        printf("%s\n", err);
        exit(1);
    }
    return delta;
}

// The line with which a bind to the sequence is refused, or "" if it is not.
static const char * refusal(llama_context * ctx, llama_seq_id seq_id, dqrelo_delta * delta) {
    static char err[1024];
    return dqrelo_bind(ctx, seq_id, delta, 1.0f, err, sizeof(err)) ? "" : err;
}

// The server's loader checks what it loaded while the main loop binds.
static void test_beside_binding(llama_context * ctx, dqrelo_delta * bound, dqrelo_delta * good, dqrelo_delta * bad) {
    check::begin("deltas are checked on another thread than the one that binds");
    int         n_good = 0, n_bad = 0;
    std::thread loader([&] {
        for (int i = 0; i < 100; i++) {
            int32_t n_applied = 0, n_inert = 0;
            char    err[1024] = "";
            n_good += dqrelo_check(ctx, good, &n_applied, &n_inert, err, sizeof(err)) && n_applied == dqrelo_n_weights(good) - n_inert;
            n_bad += !dqrelo_check(ctx, bad, &n_applied, &n_inert, err, sizeof(err)) && strstr(err, "blk.0.ssm_conv1d.weight");
        }
    });
    for (int i = 0; i < 200; i++) {
        CHECK(strcmp(refusal(ctx, 0, i % 2 == 0 ? nullptr : bound), "") == 0);
    }
    loader.join();
    CHECK(n_good == 100 && n_bad == 100);
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s BASE DELTA OTHER\n", argv[0]);
        return 2;
    }
    log_errors_only();
    llama_model_params mparams   = llama_model_default_params();
    mparams.n_gpu_layers         = 0;
    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx                = 64;
    cparams.n_seq_max            = 2;
    llama_model *   model        = llama_model_load_from_file(argv[1], mparams);
    llama_context * ctx          = llama_init_from_model(model, cparams);

    check::begin("graphs are scanned once");
    char err[1024] = "";
    CHECK(dqrelo_scan_graphs(ctx, err, sizeof(err)) && dqrelo_scan_graphs(ctx, err, sizeof(err)) && strcmp(err, "") == 0);

    check::begin("a delta beside one that was checked is checked itself");
    dqrelo_delta * delta = load(model, argv[1], argv[2]);
    dqrelo_delta * other = load(model, argv[1], argv[3]);
    CHECK(strcmp(refusal(ctx, 0, delta), "") == 0);
    CHECK(strstr(refusal(ctx, 1, other), "blk.0.ssm_conv1d.weight"));
    CHECK(!dqrelo_bound(ctx, 1, 0));

    check::begin("so is one that was loaded after the checked one was freed, wherever it lies in memory");
    CHECK(dqrelo_free(other));
    CHECK(strcmp(refusal(ctx, 0, nullptr), "") == 0 && dqrelo_free(delta));
    other = load(model, argv[1], argv[3]);
    CHECK(strstr(refusal(ctx, 0, other), "blk.0.ssm_conv1d.weight"));

    check::begin("a delta that is loaded again is bound again");
    CHECK(dqrelo_free(other));
    delta = load(model, argv[1], argv[2]);
    CHECK(strcmp(refusal(ctx, 0, delta), "") == 0);
    CHECK(dqrelo_bound(ctx, 0, 0) == delta);

    dqrelo_delta * good = load(model, argv[1], argv[2]);
    other               = load(model, argv[1], argv[3]);
    test_beside_binding(ctx, delta, good, other);

    llama_free(ctx);
    CHECK(dqrelo_free(delta) && dqrelo_free(good) && dqrelo_free(other));
    llama_model_free(model);
    return check::finish();
}
