// Binding deltas to the sequences of a context: the part of dqrelo.h that needs one.
#include "context/context-state.h"
#include "context/delta.h"
#include "dqrelo.h"
#include "file/error-text.h"
#include "graph/coverage.h"

#include "llama-context.h"

#include <cmath>
#include <exception>

namespace {

dqrelo_context & state_of(llama_context & ctx) {
    if (!ctx.dqrelo) {
        ctx.dqrelo = std::make_shared<dqrelo_context>(ctx.get_cparams().n_seq_max);
    }
    return *ctx.dqrelo;
}

bool is_for(const llama_context & ctx, const dqrelo_delta & delta, std::string & err) {
    if (&ctx.get_model() != delta.model) {
        err = delta.file->path() + ": the delta was loaded for another model than this context's. Load it for this model";
    }
    return err.empty();
}

bool check(llama_context & ctx, dqrelo_delta & delta, int32_t & n_applied, int32_t & n_inert, std::string & err) {
    return is_for(ctx, delta, err) && dqrelo::check_coverage(ctx, state_of(ctx), delta, n_applied, n_inert, err);
}

bool bind(llama_context & ctx, llama_seq_id seq_id, dqrelo_delta * delta, float scale, std::string & err) {
    if (seq_id < 0 || (uint32_t) seq_id >= ctx.get_cparams().n_seq_max) {
        err = "sequence id " + std::to_string(seq_id) + " is not in 0 .. " + std::to_string(ctx.get_cparams().n_seq_max - 1) +
              " (n_seq_max - 1)";
        return false;
    }
    if (!delta && !ctx.dqrelo) {
        return true;
    }
    if (delta && !(std::fabs(scale) <= delta->max_scale)) {
        err = delta->file->path() + ": scale " + std::to_string(scale) + ", expected a number from " + std::to_string(-delta->max_scale) +
              " to " + std::to_string(delta->max_scale);
        return false;
    }
    dqrelo_context & dctx  = state_of(ctx);
    auto &           bound = dctx.seqs[seq_id];

    const dqrelo_delta * previous = bound.delta_index >= 0 ? dctx.active[bound.delta_index].delta : nullptr;
    if (previous == delta) {
        bound.request_scale = scale;
        return true;
    }
    if (delta && !is_for(ctx, *delta, err)) {
        return false;
    }
    if (delta && !dctx.verdict_of(*delta)) {
        int32_t n_applied, n_inert;
        if (!check(ctx, *delta, n_applied, n_inert, err)) {
            return false;
        }
    }
    ctx.synchronize(); // A running graph may still read the tables.
    if (bound.delta_index >= 0) {
        dctx.release(bound.delta_index);
        bound = {};
    }
    if (delta) {
        // As many deltas may be active as there are sequences, and this one has none: an index is free.
        const size_t   n_tables   = dctx.tables.size();
        const uint32_t n_composed = dctx.n_composed_nodes();

        bound.delta_index   = dctx.acquire(delta);
        bound.request_scale = scale;
        if (dctx.tables.size() != n_tables || dctx.n_composed_nodes() != n_composed) {
            // The graphs cover more weights, or have more nodes: their memory is taken here, where a failure has a caller, and not in the
            // next decode.
            ctx.dqrelo_graphs_grew();
            try {
                ctx.sched_reserve();
            } catch (...) {
                dctx.release(bound.delta_index);
                bound = {};
                ctx.dqrelo_graphs_grew(); // The next decode reserves the graphs again, without the delta.
                throw;
            }
        }
    }
    return true;
}

} // namespace

bool dqrelo_check(llama_context * ctx, dqrelo_delta * delta, int32_t * n_applied, int32_t * n_inert, char * err, size_t n_err) {
    std::string text;
    bool        ok = false;
    try {
        ok = check(*ctx, *delta, *n_applied, *n_inert, text);
    } catch (const std::exception & e) {
        text = delta->file->path() + ": " + e.what();
    }
    dqrelo::copy_error(text, err, n_err);
    return ok;
}

bool dqrelo_bind(llama_context * ctx, llama_seq_id seq_id, dqrelo_delta * delta, float scale, char * err, size_t n_err) {
    std::string text;
    bool        ok = false;
    try {
        ok = bind(*ctx, seq_id, delta, scale, text);
    } catch (const std::exception & e) {
        text = e.what();
    }
    dqrelo::copy_error(text, err, n_err);
    return ok;
}

bool dqrelo_needs_own_batch(const llama_context * ctx, const dqrelo_delta * delta) {
    if (!ctx->dqrelo) {
        return false;
    }
    const dqrelo_context::verdict * found = ctx->dqrelo->verdict_of(*delta);
    return found && found->own_ubatch;
}

const dqrelo_delta * dqrelo_bound(const llama_context * ctx, llama_seq_id seq_id) {
    if (!ctx->dqrelo || seq_id < 0 || seq_id >= (int32_t) ctx->dqrelo->seqs.size()) {
        return nullptr;
    }
    const int32_t index = ctx->dqrelo->seqs[seq_id].delta_index;
    return index >= 0 ? ctx->dqrelo->active[index].delta : nullptr;
}
