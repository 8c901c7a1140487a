// graph-key.h: what llama.cpp compares, as a number, to decide whether a graph may be used again.
#pragma once

#include <cstddef>
#include <cstdint>

struct dqrelo_context;
struct llama_ubatch;

namespace dqrelo {

struct graph_key {
    enum class state {
        base,       // No row has a delta, so it is the base's own graph.
        shared,     // Rows may have any deltas, with any request scales, or the base.
        own_ubatch, // All tokens have one binding, of which a delta needs that.
        conflict,   // A token's sequences have different deltas, so no graph is right.
    };

    state    is      = state::base;
    uint64_t tables  = 0; // The version of the tables: the pass covers the weights that have one.
    int32_t  n_parts = 1; // No row has more deltas.

    static graph_key of(const dqrelo_context & dctx, const llama_ubatch & ubatch);

    // Equal numbers mean that one graph serves both ubatches. The base's is 0.
    uint64_t         encode() const;
    static graph_key decode(uint64_t number);
};

} // namespace dqrelo
