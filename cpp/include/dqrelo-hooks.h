// dqrelo-hooks.h: what the patched llama.cpp calls. Everything else about deltas stays behind dqrelo.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

class llama_kv_cache;
class llm_graph_result;
struct ggml_backend_sched;
struct llama_batch;
struct llama_context;
struct llama_file;
struct llama_model;
struct llama_ubatch;
struct llm_graph_params;

struct dqrelo_context;

// For each token of a batch the group of tokens with which it may share a ubatch. Empty where all may: unless some token's delta needs a
// ubatch of its own.
std::vector<uint64_t> dqrelo_token_groups(const dqrelo_context * dctx, const llama_batch & batch);

// For batches that are not split: false, having logged one line, if there is more than one group.
bool dqrelo_one_group(const dqrelo_context * dctx, const llama_batch & batch);

// Part of the key under which a graph may be reused: 0 when no row of the ubatch has a delta (the graph is then the base's own).
uint64_t dqrelo_graph_key(const dqrelo_context * dctx, const llama_ubatch & ubatch);

// Runs the pass over a finished graph: it puts the deltas of the ubatch onto the base ops that read changed weights. Returns false, having
// logged one line, when the graph cannot carry them; the graph must not be run then.
bool dqrelo_graph_pass(const llama_model & model, const llm_graph_params & params);

// Returns how many nodes and leaves the pass may add to a graph of this model, for the deltas that are bound.
uint32_t dqrelo_graph_extra_nodes(const llama_model & model, const dqrelo_context * dctx);

// The rotation of cached keys after positions were moved, which llama.cpp computes with a graph of its own that build_graph does not make.
// It reads RoPE factors, and those are the fine-tune's for the cells of a sequence whose delta changes them. So the graph is run several
// times, in one rotation for all cells with the same factors:
//
//   do { build the graph; apply(); run the graph; } while (next());
class dqrelo_k_shift {
public:
    dqrelo_k_shift(llama_context & ctx, const llama_kv_cache & cache);

    // Makes the built graph that of the current rotation, whose cells alone are rotated.
    void apply(llm_graph_result & res) const;

    // Goes on to the next rotation, and returns false if there is none.
    bool next();

private:
    void    add_cells(const llama_kv_cache & cache, int32_t seq_id, int32_t owner);
    int32_t rotation_of(int32_t owner);

    llama_context &        ctx;
    const dqrelo_context * dctx;      // NULL means that no delta is bound.
    std::vector<int32_t>   rotations; // Of each, a sequence that is bound to what changes its factors; -1 means the base's.
    size_t                 current = 0;
    std::vector<int32_t>   rotation_of_cell; // by cell of all streams; -1 where nothing moves
};

// Remembers the sequences of a ubatch, just computed, of which some token is not finite: dqrelo_is_finite. Waits for the computation where
// its graph has deltas. Returns false where the graph was ended before its logits: dqrelo_end_graph.
bool dqrelo_after_ubatch(dqrelo_context * dctx, ggml_backend_sched * sched, const llm_graph_result & res, const llama_ubatch & ubatch);

// Puts the deltas that computed a context's sequences at the beginning of a session file; nothing where all run the base.
void dqrelo_write_owners(const dqrelo_context * dctx, llama_file & file);

// Reads that; false, having logged one line, unless the same deltas are bound now.
bool dqrelo_check_owners(const dqrelo_context * dctx, llama_file & file);
