// delta-tables.h: the tables through which the operator finds the weights of the deltas that a context has bound.
#pragma once

#include "context/delta.h"
#include "dqrelo-op.h"

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dqrelo {

// Every weight that some delta changes has a table with one dqrelo_entry an active delta, in the memory where the weight's delta is
// computed. A tied matrix may have two: where embeddings are read, and where the output is computed.
class delta_tables {
public:
    // `version` is larger than that of any tables of the context before.
    explicit delta_tables(size_t n_deltas, uint64_t version = 0) : n_deltas(n_deltas), n_version(version) {}

    // Table of a weight of the model, I8 [sizeof(dqrelo_entry) * n_deltas], or nullptr if no delta so far changes it.
    ggml_tensor * find(const ggml_tensor * weight) const;

    // Fills in, or clears, the entries of the delta with an index. Tables are made as they are needed, and stay. Throws std::runtime_error
    // without memory for them.
    void set(size_t delta_index, const dqrelo_delta & delta);
    void clear(size_t delta_index);

    // Changes whenever tables are made: a graph is for the tables that it was built with.
    uint64_t version() const { return n_version; }

private:
    // Tables that were made together, in one piece of memory, so that one copy writes them all.
    struct group {
        std::vector<dqrelo_entry> entries; // Mirrors what the memory holds.
        ggml_tensor *             memory = nullptr;
        ggml_context_ptr          ctx;
        ggml_backend_buffer_ptr   buffer;
        bool                      changed = false;
    };
    struct table {
        ggml_tensor * tensor = nullptr;
        group *       in     = nullptr;
        size_t        first  = 0; // Locates its entry for index 0 in `entries`.
    };
    using key = std::pair<ggml_backend_buffer_type_t, std::string>;

    void make(ggml_backend_buffer_type_t buft, const std::vector<std::string> & weights);
    void write();

    size_t                              n_deltas;
    uint64_t                            n_version;
    std::map<key, table>                tables;
    std::vector<std::unique_ptr<group>> groups;
};

} // namespace dqrelo
