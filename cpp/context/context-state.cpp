#include "context/context-state.h"

#include "context/delta.h"
#include "context/dqrelo-hooks.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory.h"

#include <algorithm>
#include <cstring>
#include <functional>

dqrelo_context::dqrelo_context(uint32_t n_seq_max) : slots(n_seq_max), seqs(n_seq_max), tables(n_seq_max) {}

dqrelo_context::~dqrelo_context() {
    for (const slot & s : slots) {
        if (s.delta) {
            s.delta->n_bound -= s.n_bound;
        }
    }
}

int32_t dqrelo_context::acquire(dqrelo_delta * delta) {
    int32_t free_slot = -1;
    for (int32_t i = 0; i < (int32_t) slots.size(); i++) {
        if (slots[i].delta == delta) {
            free_slot = i;
            break;
        }
        if (!slots[i].delta && free_slot < 0) {
            free_slot = i;
        }
    }
    if (free_slot < 0) {
        return -1;
    }
    slot & s = slots[free_slot];
    if (!s.delta) {
        tables.set(free_slot, *delta);
        s.delta      = delta;
        s.generation = ++n_generations;
        s.own_batch  = checked.at(delta->file->content_hash()).own_batch;
        grow_composed();
    }
    s.n_bound++;
    delta->n_bound++;
    return free_slot;
}

void dqrelo_context::grow_composed() {
    uint32_t n = 0;
    for (const slot & s : slots) {
        const uint32_t n_nodes = s.delta ? checked.at(s.delta->file->content_hash()).n_composed : 0;
        n += n_nodes > 0 ? n_nodes + dqrelo::composed_graph::MAX_NODES : 0;
    }
    n_composed = std::max(n_composed, n);
}

void dqrelo_context::release(int32_t i) {
    slot & s = slots[i];
    s.delta->n_bound--;
    if (--s.n_bound == 0) {
        tables.clear(i);
        s.delta = nullptr;
    }
}

dqrelo_context::binding dqrelo_context::binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const {
    const auto    bound = [this](int32_t seq_id) { return seq_id >= 0 && seq_id < (int32_t) seqs.size() ? seqs[seq_id] : binding(); };
    const binding first = bound(seq_ids[0]);
    agree               = std::all_of(seq_ids, seq_ids + n_seq_ids, [&](int32_t id) { return bound(id) == first; });
    return first;
}

std::vector<uint64_t> dqrelo_token_groups(const dqrelo_context * dctx, const llama_batch & batch) {
    if (!dctx) {
        return {};
    }
    std::vector<uint64_t> groups;
    bool                  own_batch = false;
    for (int32_t i = 0; i < batch.n_tokens; i++) {
        bool       agree = true;
        const auto b     = dctx->binding_of(batch.seq_id[i], batch.n_seq_id[i], agree);
        uint32_t   scale_bits;
        memcpy(&scale_bits, &b.scale, sizeof(scale_bits));
        groups.push_back(b.slot < 0 ? 0 : (uint64_t) (b.slot + 1) << 32 | scale_bits);
        own_batch = own_batch || (b.slot >= 0 && dctx->slots[b.slot].own_batch);
    }
    return own_batch ? groups : std::vector<uint64_t>();
}

bool dqrelo_one_group(const dqrelo_context * dctx, const llama_batch & batch) {
    const std::vector<uint64_t> groups = dqrelo_token_groups(dctx, batch);
    const bool                  one    = std::adjacent_find(groups.begin(), groups.end(), std::not_equal_to<uint64_t>()) == groups.end();
    if (!one) {
        LLAMA_LOG_ERROR("dqrelo: the batch has sequences of several deltas, of which one needs a batch of its own "
                        "(dqrelo_needs_own_batch); encode them one after another\n");
    }
    return one;
}

uint64_t dqrelo_graph_key(const dqrelo_context * dctx, const llama_ubatch & ubatch) {
    if (!dctx) {
        return 0;
    }
    bool any = false;
    bool own = false;
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        bool       agree = true;
        const auto b     = dctx->binding_of(ubatch.seq_id[i], ubatch.n_seq_id[i], agree);
        any              = any || b.slot >= 0;
        own              = own || (b.slot >= 0 && dctx->slots[b.slot].own_batch);
        if (!agree) {
            return UINT64_MAX; // never equal to a graph that was built: the pass refuses it
        }
    }
    return any ? 2 * (dctx->tables.size() + 1) + (own ? 1 : 0) : 0;
}

void dqrelo::scan_usage(llama_context & ctx, dqrelo_context & dctx) {
    const auto & cparams = ctx.get_cparams();
    dctx.usage.clear();

    // a pass that scans puts no deltas onto graphs, so the mode must end even if a graph cannot be built
    struct scan_mode {
        bool & on;
        explicit scan_mode(bool & on) : on(on) { on = true; }
        ~scan_mode() { on = false; }
    } mode(dctx.scanning);

    // as llama.cpp itself reserves its graphs; some architectures build other graphs for single tokens
    const uint32_t n_seqs = cparams.n_seq_max;
    for (uint32_t n_tokens : { n_seqs, std::min(cparams.n_ctx, cparams.n_ubatch) }) {
        llama_memory_context_ptr mctx;
        if (ctx.get_memory()) {
            mctx = ctx.get_memory()->init_full();
        }
        ctx.graph_reserve(n_tokens, n_seqs, std::min(n_tokens, cparams.n_outputs_max), mctx.get(), /*split_only =*/true);
    }
    dctx.scanned = true;
}
