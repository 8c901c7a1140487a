// test-graph-pass BASE DELTA
//
// The graph pass on graphs made by hand, with what llama.cpp's own graphs seldom or never have. BASE is a Llama model in which
// blk.0.attn_q.weight has a scale tensor; DELTA changes that weight. tests/graph/test_graph_pass.py makes the files.
#include "context/context-state.h"
#include "dqrelo-hooks.h"
#include "dqrelo-op.h"
#include "dqrelo.h"
#include "graph/row-tokens.h"
#include "support/check.h"
#include "support/log-errors.h"

#include "ggml-impl.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <array>
#include <functional>
#include <memory>
#include <string>

static constexpr int N_TOKENS = 6;

// A graph with an input of tokens, and the parameters with which the pass is called.
struct hand_made {
    llm_graph_result    res{ 256 };
    llama_batch_allocr  balloc{ 1 };
    llm_graph_params    params = {};
    ggml_context *      ctx    = nullptr;
    ggml_tensor *       inp_tokens;
    const llama_model * model = nullptr;

    explicit hand_made(llama_context * lctx = nullptr) {
        res.reset();
        ctx              = res.get_ctx();
        params.res       = &res;
        params.ubatch    = balloc.ubatch_reserve(N_TOKENS, 1);
        params.n_outputs = N_TOKENS;
        for (int i = 0; i < N_TOKENS; i++) {
            params.ubatch.n_seq_id[i] = 1;
            params.ubatch.seq_id[i]   = params.ubatch.seq_id_unq;
        }
        if (lctx) {
            model             = &lctx->get_model();
            params.dqrelo     = lctx->dqrelo.get();
            params.dqrelo_key = dqrelo_graph_key(params.dqrelo, params.ubatch);
        }
        auto input    = std::make_unique<llm_graph_input_embd>(8);
        input->tokens = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, N_TOKENS);
        inp_tokens    = input->tokens;
        ggml_set_input(inp_tokens);
        res.add_input(std::move(input));
    }

    ggml_tensor * weight(const char * name) const { return const_cast<ggml_tensor *>(model->get_tensor(name)); }

    // Returns x W of blk.0.attn_q, F32 [n_embd, n_tokens].
    ggml_tensor * q() const {
        return ggml_mul_mat(ctx, weight("blk.0.attn_q.weight"), ggml_get_rows(ctx, weight("token_embd.weight"), inp_tokens));
    }

    bool pass(ggml_tensor * result) {
        ggml_build_forward_expand(res.get_gf(), result);
        return dqrelo_graph_pass(*model, params);
    }
};

static void test_scale_tensors(llama_context * ctx) {
    check::begin("the delta of a weight with a scale tensor goes onto the multiplication by that");
    hand_made     scaled(ctx);
    ggml_tensor * product = ggml_mul(scaled.ctx, scaled.q(), scaled.weight("blk.0.attn_q.scale"));
    CHECK(scaled.pass(product));
    CHECK(product->op == GGML_OP_DQRELO);

    check::begin("a graph that does not multiply by the scale tensor is refused");
    hand_made unscaled(ctx);
    CHECK(!unscaled.pass(ggml_sqr(unscaled.ctx, unscaled.q())));

    check::begin("unless no delta changes the weight");
    hand_made     other(ctx);
    ggml_tensor * x = ggml_get_rows(other.ctx, other.weight("token_embd.weight"), other.inp_tokens);
    CHECK(other.pass(ggml_sqr(other.ctx, ggml_mul_mat(other.ctx, other.weight("blk.0.attn_k.weight"), x))));
}

using op = std::function<ggml_tensor *(ggml_context *, ggml_tensor *)>;

// Returns which token the rows of op(x) are for, where x is F32 [8, N_TOKENS], or [N_TOKENS, 8] with the tokens along axis 0.
static dqrelo::row_tokens derived(const op & make, bool tokens_in_rows) {
    hand_made             graph;
    ggml_tensor *         tokens = ggml_new_tensor_3d(graph.ctx, GGML_TYPE_F32, 2, N_TOKENS, 2);
    ggml_tensor *         table  = ggml_new_tensor_2d(graph.ctx, GGML_TYPE_F32, 8, 100);
    ggml_tensor *         x      = ggml_get_rows(graph.ctx, table, graph.inp_tokens);
    ggml_tensor *         node   = make(graph.ctx, tokens_in_rows ? ggml_cont(graph.ctx, ggml_transpose(graph.ctx, x)) : x);
    dqrelo::row_token_map map(graph.params, graph.ctx, tokens);
    ggml_cgraph *         gf = graph.res.get_gf();
    ggml_build_forward_expand(gf, node);
    for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
        map.visit(ggml_graph_node(gf, i));
    }
    return map.of(node);
}

static void test_ops_along_rows() {
    struct named_op {
        const char * name;
        op           make;
    };
    const auto positions = [](ggml_context * ctx, int64_t n) { return ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n); };

    check::begin("ops that treat each element of a row alone keep its token");
    for (const named_op & o : {
             named_op{ "scale", [](ggml_context * c, ggml_tensor * x) { return ggml_scale(c, x, 2.0f); } },
             named_op{ "sqr", [](ggml_context * c, ggml_tensor * x) { return ggml_sqr(c, x); } },
             named_op{ "silu", [](ggml_context * c, ggml_tensor * x) { return ggml_silu(c, x); } },
             named_op{ "add", [](ggml_context * c, ggml_tensor * x) { return ggml_add(c, x, ggml_sqr(c, x)); } },
             named_op{ "swiglu_split", [](ggml_context * c, ggml_tensor * x) { return ggml_swiglu_split(c, x, ggml_sqr(c, x)); } },
         }) {
        const dqrelo::row_tokens columns = derived(o.make, false);
        const dqrelo::row_tokens rows    = derived(o.make, true);
        printf("  %s\n", o.name);
        CHECK(columns.known && columns.tokens && columns.stride[0] == 0 && columns.stride[1] == 1);
        CHECK(rows.known && rows.tokens && rows.stride[0] == 1 && rows.stride[1] == 0);
    }

    check::begin("ops that mix a row's elements keep its token if the row has one, and else none is known");
    for (const named_op & o : {
             named_op{ "soft_max", [](ggml_context * c, ggml_tensor * x) { return ggml_soft_max(c, x); } },
             named_op{ "sum_rows", [](ggml_context * c, ggml_tensor * x) { return ggml_sum_rows(c, x); } },
             named_op{ "mean", [](ggml_context * c, ggml_tensor * x) { return ggml_mean(c, x); } },
             named_op{ "norm", [](ggml_context * c, ggml_tensor * x) { return ggml_norm(c, x, 1e-5f); } },
             named_op{ "rms_norm", [](ggml_context * c, ggml_tensor * x) { return ggml_rms_norm(c, x, 1e-5f); } },
             named_op{ "l2_norm", [](ggml_context * c, ggml_tensor * x) { return ggml_l2_norm(c, x, 1e-5f); } },
             named_op{ "argsort", [](ggml_context * c, ggml_tensor * x) { return ggml_argsort(c, x, GGML_SORT_ORDER_ASC); } },
             named_op{ "top_k", [](ggml_context * c, ggml_tensor * x) { return ggml_top_k(c, x, 2); } },
             named_op{ "swiglu", [](ggml_context * c, ggml_tensor * x) { return ggml_swiglu(c, x); } },
             named_op{ "rope",
                       [&](ggml_context * c, ggml_tensor * x) {
                           x = ggml_reshape_3d(c, x, x->ne[0], 1, x->ne[1]);
                           return ggml_reshape_2d(c, ggml_rope(c, x, positions(c, x->ne[2]), 2, 0), x->ne[0], x->ne[2]);
                       } },
         }) {
        const dqrelo::row_tokens columns = derived(o.make, false);
        printf("  %s\n", o.name);
        CHECK(columns.known && columns.tokens && columns.stride[0] == 0 && columns.stride[1] == 1);
        CHECK(!derived(o.make, true).known);
    }

    check::begin("a tensor whose tokens are repeated along an axis has none that are known");
    CHECK(!derived([](ggml_context * c, ggml_tensor * x) { return ggml_add(c, ggml_new_tensor_2d(c, GGML_TYPE_F32, 8, 2 * N_TOKENS), x); },
                   false)
               .known);
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s BASE DELTA\n", argv[0]);
        return 2;
    }
    log_errors_only();
    test_ops_along_rows();

    llama_model_params mparams   = llama_model_default_params();
    mparams.n_gpu_layers         = 0;
    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx                = 64;
    cparams.n_threads = cparams.n_threads_batch = 1;
    char            err[1024]                   = "";
    llama_model *   model                       = llama_model_load_from_file(argv[1], mparams);
    llama_context * ctx                         = llama_init_from_model(model, cparams);
    dqrelo_delta *  delta                       = dqrelo_load(model, argv[1], argv[2], dqrelo_load_default_params(), err, sizeof(err));
    if (!delta || !dqrelo_bind(ctx, 0, delta, 1.0f, err, sizeof(err))) {
        printf("%s\n", err);
        return 1;
    }
    test_scale_tensors(ctx);
    llama_free(ctx);
    dqrelo_free(delta);
    llama_model_free(model);
    return check::finish();
}
