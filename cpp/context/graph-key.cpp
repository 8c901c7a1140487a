#include "context/graph-key.h"

#include "context/context-state.h"
#include "dqrelo-hooks.h"
#include "dqrelo.h"

#include "llama-batch.h"

#include <algorithm>

namespace dqrelo {

// 0: base. UINT64_MAX: conflict. Else the digits (version of the tables + 1), (parts - 1), own ubatch.
static constexpr uint64_t NUMBER_OF_CONFLICT = UINT64_MAX;

graph_key graph_key::of(const dqrelo_context & dctx, const llama_ubatch & ubatch) {
    graph_key key;
    key.tables = dctx.tables.version();
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        bool         agree = true;
        const auto & b     = dctx.binding_of(ubatch.seq_id[i], ubatch.n_seq_id[i], agree);
        if (!agree) {
            key.is = state::conflict;
            break;
        }
        key.n_parts = std::max(key.n_parts, (int32_t) b.size());
        for (const dqrelo_context::part & p : b) {
            if (key.is != state::own_ubatch) {
                key.is = dctx.active[p.delta_index].own_ubatch ? state::own_ubatch : state::shared;
            }
        }
    }
    return key;
}

uint64_t graph_key::encode() const {
    const uint64_t digits = ((tables + 1) * DQRELO_MAX_PARTS + (uint64_t) (n_parts - 1)) * 2;
    switch (is) {
        case state::base: return 0;
        case state::shared: return digits;
        case state::own_ubatch: return digits + 1;
        case state::conflict: return NUMBER_OF_CONFLICT;
    }
    return NUMBER_OF_CONFLICT;
}

graph_key graph_key::decode(uint64_t number) {
    graph_key key;
    if (number == NUMBER_OF_CONFLICT) {
        key.is = state::conflict;
    } else if (number != 0) {
        key.is      = number & 1 ? state::own_ubatch : state::shared;
        key.n_parts = (int32_t) (number / 2 % DQRELO_MAX_PARTS) + 1;
        key.tables  = number / 2 / DQRELO_MAX_PARTS - 1;
    }
    return key;
}

} // namespace dqrelo

uint64_t dqrelo_graph_key(const dqrelo_context * dctx, const llama_ubatch & ubatch) {
    return dctx ? dqrelo::graph_key::of(*dctx, ubatch).encode() : dqrelo::graph_key().encode();
}
