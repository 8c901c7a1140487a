// Results that are NaN or infinite: the part of dqrelo.h that finds them and clears what they leave behind.
#include "context/context-state.h"
#include "dqrelo-hooks.h"
#include "dqrelo.h"
#include "graph/finite-guard.h"
#include "memory/clear-cells.h"

#include "ggml-backend.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-model.h"

#include <cmath>
#include <vector>

namespace {

// -infinity is a ban of a token, as some models and samplers write it; a row of nothing else says nothing.
bool is_finite_row(const float * row, int64_t n) {
    bool any_finite = false;
    bool all_good   = true;
    for (int64_t i = 0; i < n; i++) {
        any_finite |= row[i] > -INFINITY;
        all_good &= row[i] < INFINITY;
    }
    return all_good && any_finite;
}

} // namespace

bool dqrelo_after_ubatch(dqrelo_context * dctx, ggml_backend_sched * sched, const llm_graph_result & res, const llama_ubatch & ubatch) {
    if (!dctx) {
        return true;
    }
    if (dctx->is_graph_ended) {
        dctx->is_graph_ended = false;
        return false;
    }
    for (const auto & input : res.inputs) {
        const auto * check = dynamic_cast<const dqrelo::finite_check *>(input.get());
        if (!check) {
            continue;
        }
        ggml_backend_sched_synchronize(sched);
        std::vector<float> sums(ubatch.n_tokens);
        ggml_backend_tensor_get(check->sums, sums.data(), 0, ggml_nbytes(check->sums));
        for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
            for (int32_t k = 0; k < ubatch.n_seq_id[i] && !std::isfinite(sums[i]); k++) {
                dctx->not_finite.at(ubatch.seq_id[i][k]) = true;
            }
        }
    }
    return true;
}

bool dqrelo_is_finite(llama_context * ctx, llama_seq_id seq_id, int32_t i_output) {
    const dqrelo_context * dctx = ctx->dqrelo.get();
    if (dctx && seq_id >= 0 && (size_t) seq_id < dctx->not_finite.size() && dctx->not_finite[seq_id]) {
        return false;
    }
    if (i_output < 0) {
        return true;
    }
    ctx->synchronize();
    const auto & hparams = ctx->get_model().hparams;
    if (!ctx->get_cparams().embeddings) {
        const float * logits = ctx->get_logits_ith(i_output);
        return !logits || is_finite_row(logits, ctx->get_model().vocab.n_tokens());
    }
    const bool    is_pooled = ctx->pooling_type() != LLAMA_POOLING_TYPE_NONE;
    const bool    is_rank   = ctx->pooling_type() == LLAMA_POOLING_TYPE_RANK;
    const float * embd      = is_pooled ? ctx->get_embeddings_seq(seq_id) : ctx->get_embeddings_ith(i_output);
    return !embd || is_finite_row(embd, is_rank ? hparams.n_cls_out : hparams.n_embd_out());
}

void dqrelo_forget(llama_context * ctx, llama_seq_id seq_id) {
    ctx->synchronize();
    if (ctx->dqrelo && seq_id >= 0 && (size_t) seq_id < ctx->dqrelo->not_finite.size()) {
        ctx->dqrelo->not_finite[seq_id] = false;
    }
    if (llama_memory_i * memory = ctx->get_memory()) {
        memory->seq_rm(seq_id, -1, -1);
        dqrelo::clear_free_cells(*memory);
    }
}
