// Which tokens of a batch may share a ubatch: hooks of dqrelo-hooks.h.
#include "context/context-state.h"

#include "dqrelo-hooks.h"

#include "llama-batch.h"
#include "llama-impl.h"

#include <algorithm>
#include <functional>

std::vector<uint64_t> dqrelo_token_groups(const dqrelo_context * dctx, const llama_batch & batch) {
    if (!dctx) {
        return {};
    }
    std::vector<uint64_t> groups;
    bool                  own_ubatch = false;
    for (int32_t i = 0; i < batch.n_tokens; i++) {
        bool         agree = true;
        const auto & b     = dctx->binding_of(batch.seq_id[i], batch.n_seq_id[i], agree);
        own_ubatch = own_ubatch || std::any_of(b.begin(), b.end(),
                                               [&](const dqrelo_context::part & p) { return dctx->active[p.delta_index].own_ubatch; });
        // A group is named by the first sequence that has its binding; 0 is the base.
        const auto first = std::find(dctx->seqs.begin(), dctx->seqs.end(), b);
        groups.push_back(b.empty() ? 0 : (uint64_t) (first - dctx->seqs.begin()) + 1);
    }
    return own_ubatch ? groups : std::vector<uint64_t>();
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
