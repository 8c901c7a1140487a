// Binding deltas to the sequences of a context: the part of dqrelo.h that needs one.
#include "context/context-state.h"
#include "context/delta.h"
#include "dqrelo.h"
#include "file/error-text.h"
#include "graph/coverage.h"

#include "llama-context.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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

using delta_scales = std::vector<std::pair<dqrelo_delta *, float>>;

bool has(const delta_scales & parts, const dqrelo_delta * delta) {
    return std::any_of(parts.begin(), parts.end(), [delta](const auto & part) { return part.first == delta; });
}

delta_scales bound_to(const dqrelo_context & dctx, llama_seq_id seq_id) {
    delta_scales parts;
    for (const dqrelo_context::part & p : dctx.seqs[seq_id]) {
        parts.emplace_back(dctx.active[p.delta_index].delta, p.request_scale);
    }
    return parts;
}

// Checks what is asked for, each delta by itself and against the graphs of the context.
bool check_parts(llama_context & ctx, const delta_scales & parts, std::string & err) {
    if (parts.size() > DQRELO_MAX_PARTS) {
        err = "a blend of " + std::to_string(parts.size()) + " deltas, expected at most " + std::to_string(DQRELO_MAX_PARTS);
        return false;
    }
    for (size_t i = 0; i < parts.size(); i++) {
        const auto & [delta, scale] = parts[i];
        if (!(std::fabs(scale) <= delta->max_scale)) {
            err = delta->file->path() + ": scale " + std::to_string(scale) + ", expected a number from " +
                  std::to_string(-delta->max_scale) + " to " + std::to_string(delta->max_scale);
            return false;
        }
        if (has(delta_scales(parts.begin(), parts.begin() + (ptrdiff_t) i), delta)) {
            err = delta->file->path() + ": the delta is twice in one blend. Give it once, with the sum of the scales";
            return false;
        }
        int32_t n_applied, n_inert;
        if (!is_for(ctx, *delta, err) || (!state_of(ctx).verdict_of(*delta) && !check(ctx, *delta, n_applied, n_inert, err))) {
            return false;
        }
    }
    return true;
}

// Gives the sequence other deltas. The graphs may come to cover more weights, or to have more nodes: their memory is taken here, where a
// failure has a caller, and not in the next decode.
void rebind(llama_context & ctx, dqrelo_context & dctx, llama_seq_id seq_id, const delta_scales & parts) {
    const auto size_of_graphs = [&dctx] { return std::make_tuple(dctx.tables.version(), dctx.n_composed_nodes(), dctx.n_parts()); };
    ctx.synchronize(); // A running graph may still read the tables.
    dctx.release(seq_id);
    const auto before = size_of_graphs();
    try {
        dctx.acquire(seq_id, parts);
        if (size_of_graphs() != before) {
            ctx.dqrelo_graphs_grew();
            ctx.sched_reserve();
        }
    } catch (...) {
        dctx.release(seq_id);
        ctx.dqrelo_graphs_grew(); // The next decode reserves the graphs again, without the deltas.
        throw;
    }
}

bool bind_parts(llama_context & ctx, llama_seq_id seq_id, const delta_scales & parts, std::string & err) {
    if (seq_id < 0 || (uint32_t) seq_id >= ctx.get_cparams().n_seq_max) {
        err = "sequence id " + std::to_string(seq_id) + " is not in 0 .. " + std::to_string(ctx.get_cparams().n_seq_max - 1) +
              " (n_seq_max - 1)";
        return false;
    }
    if (parts.empty() && !ctx.dqrelo) {
        return true;
    }
    if (!check_parts(ctx, parts, err)) {
        return false;
    }
    dqrelo_context &   dctx  = state_of(ctx);
    const delta_scales bound = bound_to(dctx, seq_id);
    const bool         same =
        bound.size() == parts.size() && std::all_of(parts.begin(), parts.end(), [&](const auto & part) { return has(bound, part.first); });
    if (!same) {
        rebind(ctx, dctx, seq_id, parts);
        return true;
    }
    for (dqrelo_context::part & p : dctx.seqs[seq_id]) {
        const dqrelo_delta * delta = dctx.active[p.delta_index].delta;
        p.request_scale = std::find_if(parts.begin(), parts.end(), [&](const auto & part) { return part.first == delta; })->second;
    }
    return true;
}

bool bind_parts(llama_context & ctx, llama_seq_id seq_id, const delta_scales & parts, char * err, size_t n_err) {
    std::string text;
    bool        ok = false;
    try {
        ok = bind_parts(ctx, seq_id, parts, text);
    } catch (const std::exception & e) {
        text = e.what();
    }
    dqrelo::copy_error(text, err, n_err);
    return ok;
}

} // namespace

bool dqrelo_scan_graphs(llama_context * ctx, char * err, size_t n_err) {
    try {
        dqrelo::scan_graphs(*ctx, state_of(*ctx));
        return true;
    } catch (const std::exception & e) {
        dqrelo::copy_error(e.what(), err, n_err);
        return false;
    }
}

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
    return bind_parts(*ctx, seq_id, delta ? delta_scales{ { delta, scale } } : delta_scales(), err, n_err);
}

bool dqrelo_bind_parts(llama_context * ctx, llama_seq_id seq_id, const dqrelo_part * parts, size_t n_parts, char * err, size_t n_err) {
    delta_scales list;
    for (size_t i = 0; i < n_parts; i++) {
        list.emplace_back(parts[i].delta, parts[i].scale);
    }
    return bind_parts(*ctx, seq_id, list, err, n_err);
}

bool dqrelo_needs_own_batch(const llama_context * ctx, const dqrelo_delta * delta) {
    if (!ctx->dqrelo) {
        return false;
    }
    const auto found = ctx->dqrelo->verdict_of(*delta);
    return found && found->own_ubatch;
}

const dqrelo_delta * dqrelo_bound(const llama_context * ctx, llama_seq_id seq_id, int32_t i) {
    if (!ctx->dqrelo || seq_id < 0 || seq_id >= (int32_t) ctx->dqrelo->seqs.size()) {
        return nullptr;
    }
    const dqrelo_context::binding & bound = ctx->dqrelo->seqs[seq_id];
    return i >= 0 && i < (int32_t) bound.size() ? ctx->dqrelo->active[bound[i].delta_index].delta : nullptr;
}

void dqrelo_watch_graphs(llama_context * ctx, void (*fn)(ggml_cgraph * graph, void * user), void * user) {
    state_of(*ctx).on_graph = [fn, user](ggml_cgraph * graph) { fn(graph, user); };
}

void dqrelo_end_graph(llama_context * ctx) {
    state_of(*ctx).is_graph_ended = true;
}
