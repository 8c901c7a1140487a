// context-state.h: which delta each sequence of a context has, and the tables through which the operator finds their weights.
//
// A context has a fixed number of slots, each holding one bound delta. The graph refers to tables and slot numbers only, so binding another
// delta rewrites table entries and never the graph.
#pragma once

#include "context/delta-tables.h"

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

struct dqrelo_delta;

namespace dqrelo {
struct graph_usage; // graph/weight-usage.h
} // namespace dqrelo

struct dqrelo_context {
    struct slot {
        dqrelo_delta * delta      = nullptr;
        int32_t        n_bound    = 0;
        bool           own_batch  = false; // its tokens share no ubatch with others
        uint64_t       generation = 0;     // differs for each delta that the slot gets
    };
    struct binding {
        int32_t slot  = -1;
        float   scale = 1.0f;
        bool    operator==(const binding & other) const { return slot == other.slot && (slot < 0 || scale == other.scale); }
    };

    explicit dqrelo_context(uint32_t n_seq_max);
    ~dqrelo_context();
    dqrelo_context(const dqrelo_context &)             = delete;
    dqrelo_context & operator=(const dqrelo_context &) = delete;

    // The slot that holds `delta`, which was checked, else a free one that now does, else -1.
    int32_t acquire(dqrelo_delta * delta);
    void    release(int32_t slot);

    // Nodes that graphs must have room for besides those of the operator.
    uint32_t n_composed_nodes() const { return n_composed; }

    // Of a token with the given sequences; false in `agree` if they have different deltas.
    binding binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const;

    std::vector<slot>    slots;
    std::vector<binding> seqs; // by sequence id
    dqrelo::delta_tables tables;

    struct verdict {
        bool     own_batch  = false; // in ubatches of its own
        uint32_t n_composed = 0;     // nodes that it adds to a graph where it is composed of ordinary ops
    };
    std::unordered_map<std::string, verdict> checked; // by content hash, the deltas that the graphs can carry

    // What the graphs of this context read, null until they were scanned, and what a scan under way collects.
    std::shared_ptr<const dqrelo::graph_usage> usage;
    dqrelo::graph_usage *                      scan = nullptr; // the graph pass only records then, and puts no deltas onto graphs

private:
    void grow_composed();

    uint64_t n_generations = 0;
    uint32_t n_composed    = 0; // the most so far, so that graphs grow seldom
};
