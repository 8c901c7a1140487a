// context-state.h: which deltas each sequence of a context has, and the tables through which the operator finds their weights.
//
// The deltas that are bound to some sequence, alone or as parts of a blend, are the active ones. Each has an index as long as it is bound.
// The graph refers to tables and indices only, so binding another delta rewrites table entries and never the graph.
#pragma once

#include "context/delta-tables.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

struct dqrelo_delta;
struct ggml_cgraph;

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
    struct part {
        int32_t delta_index;
        float   request_scale;
        bool    operator==(const part & other) const { return delta_index == other.delta_index && request_scale == other.request_scale; }
    };
    // What a sequence has: several parts are a blend, and none is the base. Equal blends have their parts in the same order.
    using binding = std::vector<part>;

    // What a check found of a delta that the graphs can carry.
    struct verdict {
        bool     own_ubatch = false; // Its tokens need ubatches of their own.
        uint32_t n_composed = 0;     // Counts the nodes that it adds to a graph where it is composed of ordinary ops.
    };

    explicit dqrelo_context(uint32_t n_seq_max);
    ~dqrelo_context();
    dqrelo_context(const dqrelo_context &)             = delete;
    dqrelo_context & operator=(const dqrelo_context &) = delete;

    // Gives a sequence, which has the base, these deltas, which were checked, no two of them the same. Throws std::runtime_error without
    // memory for their tables; the sequence has the base then.
    void acquire(int32_t seq_id, const std::vector<std::pair<dqrelo_delta *, float>> & parts);
    void release(int32_t seq_id);

    // Returns nothing if the delta was not checked, or was refused. A verdict belongs to the loaded delta, not to its file: another one may
    // say of itself what this one says. Both may be called beside everything else.
    std::optional<verdict> verdict_of(const dqrelo_delta & delta) const;
    void                   set_verdict(const dqrelo_delta & delta, const verdict & found);

    // Returns how many nodes graphs must have room for besides those of the operator.
    uint32_t n_composed_nodes() const { return n_composed; }

    // Returns how many deltas a row may have in the graphs that there must be room for: 1 where there are no blends.
    uint32_t n_parts() const { return n_most_parts; }

    // Returns the binding of a token with the given sequences; false in `agree` if they have different deltas.
    const binding & binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const;

    // Has an entry for each index; an entry without a delta is a free index. There are as many as sequences, and more once blends need
    // them.
    std::vector<active_delta> active;
    std::vector<binding>      seqs; // Has an entry for each sequence id.
    // Has an entry for each sequence id: true if it computed NaN or infinity since it was last forgotten.
    std::vector<bool>    not_finite;
    dqrelo::delta_tables tables;

    // What the graphs of this context read, null until they were scanned, and constant then.
    std::shared_ptr<const dqrelo::graph_usage> usage;
    // What a scan under way collects. While this is set, the graph pass only records reads, and puts no deltas onto graphs.
    dqrelo::graph_usage * scan = nullptr;

    // Is told of each graph, unless it is empty (dqrelo_watch_graphs).
    std::function<void(ggml_cgraph *)> on_graph;
    // Says that the ubatch under way has no logits, until it is done (dqrelo_end_graph).
    bool is_graph_ended = false;

private:
    int32_t acquire_index(dqrelo_delta * delta);
    int32_t free_index();
    void    release_index(int32_t delta_index);
    void    grow_composed();

    // An entry keeps its file's identity, but not the file: no file that is loaded later can be taken for one that has gone. The mutex
    // guards it.
    mutable std::mutex                                                            verdicts_mutex;
    std::map<std::weak_ptr<const dqrelo::delta_file>, verdict, std::owner_less<>> verdicts;

    uint64_t n_generations = 0;
    // These keep the most that was needed so far, so that graphs grow seldom.
    uint32_t n_composed   = 0;
    uint32_t n_most_parts = 1;
};
