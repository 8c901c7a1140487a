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
struct graph_usage; // graph/weight-usage.h
} // namespace dqrelo

struct dqrelo_context {
    struct active_delta {
        dqrelo_delta * delta      = nullptr;
        int32_t        n_bound    = 0;
        bool           own_ubatch = false; // its tokens share no ubatch with others
        uint64_t       generation = 0;     // differs for each delta that the index gets
    };
    struct binding {
        int32_t delta_index   = -1; // -1: the base
        float   request_scale = 1.0f;
        bool    operator==(const binding & other) const {
            return delta_index == other.delta_index && (delta_index < 0 || request_scale == other.request_scale);
        }
    };

    // What a check found of a delta that the graphs can carry.
    struct verdict {
        bool     own_ubatch = false; // in ubatches of its own
        uint32_t n_composed = 0;     // nodes that it adds to a graph where it is composed of ordinary ops
    };

    explicit dqrelo_context(uint32_t n_seq_max);
    ~dqrelo_context();
    dqrelo_context(const dqrelo_context &)             = delete;
    dqrelo_context & operator=(const dqrelo_context &) = delete;

    // The index of `delta`, which was checked: the one it has, else a free one, else -1.
    int32_t acquire(dqrelo_delta * delta);
    void    release(int32_t delta_index);

    // nullptr if the delta was not checked, or was refused. A verdict is of the loaded delta: another one may say of itself what this one
    // says.
    const verdict * verdict_of(const dqrelo_delta & delta) const;
    void            set_verdict(const dqrelo_delta & delta, const verdict & found);

    // Nodes that graphs must have room for besides those of the operator.
    uint32_t n_composed_nodes() const { return n_composed; }

    // Of a token with the given sequences; false in `agree` if they have different deltas.
    binding binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const;

    std::vector<active_delta> active;     // by index; without a delta where the index is free
    std::vector<binding>      seqs;       // by sequence id
    std::vector<bool>         not_finite; // by sequence id: computed NaN or infinity since it was last forgotten
    dqrelo::delta_tables      tables;

    // What the graphs of this context read, null until they were scanned, and what a scan under way collects.
    std::shared_ptr<const dqrelo::graph_usage> usage;
    dqrelo::graph_usage *                      scan = nullptr; // the graph pass only records then, and puts no deltas onto graphs

private:
    void grow_composed();

    // An entry keeps its file's identity, but not the file: no file that is loaded later can be taken for one that has gone.
    std::map<std::weak_ptr<const dqrelo::delta_file>, verdict, std::owner_less<>> verdicts;

    uint64_t n_generations = 0;
    uint32_t n_composed    = 0; // the most so far, so that graphs grow seldom
};
