// context-state.h: which delta each sequence of a context has, and the tables through which the operator finds their weights.
//
// The deltas that are bound to some sequence are the active ones. Each has an index as long as it is bound. The graph refers to tables and
// indices only, so binding another delta rewrites table entries and never the graph.
#pragma once

#include "context/delta-tables.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

struct dqrelo_delta;

namespace dqrelo {
struct graph_usage; // Defined in graph/weight-usage.h.
} // namespace dqrelo

struct dqrelo_context {
    struct active_delta {
        dqrelo_delta * delta      = nullptr;
        int32_t        n_bound    = 0;
        bool           own_ubatch = false; // Its tokens share no ubatch with others.
        uint64_t       generation = 0;     // Differs for each delta that the index gets.
    };
    struct binding {
        int32_t delta_index   = -1; // -1 is the base.
        float   request_scale = 1.0f;
        bool    operator==(const binding & other) const {
            return delta_index == other.delta_index && (delta_index < 0 || request_scale == other.request_scale);
        }
    };

    // What a check found of a delta that the graphs can carry.
    struct verdict {
        bool     own_ubatch = false; // Its tokens need ubatches of their own.
        uint32_t n_composed = 0;     // Counts the nodes that it adds to a graph where it is composed of ordinary ops.
    };

    explicit dqrelo_context(uint32_t n_seq_max);
    ~dqrelo_context();
    dqrelo_context(const dqrelo_context &)             = delete;
    dqrelo_context & operator=(const dqrelo_context &) = delete;

    // Returns the index of `delta`, which was checked: the one it has, else a free one, else -1.
    int32_t acquire(dqrelo_delta * delta);
    void    release(int32_t delta_index);

    // Returns nullptr if the delta was not checked, or was refused. A verdict belongs to the loaded delta, not to its file: another one may
    // say of itself what this one says.
    const verdict * verdict_of(const dqrelo_delta & delta) const;
    void            set_verdict(const dqrelo_delta & delta, const verdict & found);

    // Returns how many nodes graphs must have room for besides those of the operator.
    uint32_t n_composed_nodes() const { return n_composed; }

    // Returns the binding of a token with the given sequences; false in `agree` if they have different deltas.
    binding binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const;

    std::vector<active_delta> active; // Has an entry for each index; an entry without a delta is a free index.
    std::vector<binding>      seqs;   // Has an entry for each sequence id.
    // Has an entry for each sequence id: true if it computed NaN or infinity since it was last forgotten.
    std::vector<bool>    not_finite;
    dqrelo::delta_tables tables;

    // What the graphs of this context read, null until they were scanned, and what a scan under way collects.
    std::shared_ptr<const dqrelo::graph_usage> usage;
    // While this is set, the graph pass only records reads, and puts no deltas onto graphs.
    dqrelo::graph_usage * scan = nullptr;

private:
    void grow_composed();

    // An entry keeps its file's identity, but not the file: no file that is loaded later can be taken for one that has gone.
    std::map<std::weak_ptr<const dqrelo::delta_file>, verdict, std::owner_less<>> verdicts;

    uint64_t n_generations = 0;
    // Keeps the most that was needed so far, so that graphs grow seldom.
    uint32_t n_composed = 0;
};
