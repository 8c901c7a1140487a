// dqrelo-hooks.h: what the patched llama.cpp calls. Everything else about deltas stays behind dqrelo.h.
#pragma once

#include <cstdint>

struct llama_model;
struct llama_ubatch;
struct llm_graph_params;

struct dqrelo_context;

// Part of the key under which a graph may be reused: 0 when no row of the ubatch has a delta (the graph is then the base's own).
uint64_t dqrelo_graph_key(const dqrelo_context * dctx, const llama_ubatch & ubatch);

// The pass over a finished graph: puts the deltas of the ubatch onto the base ops that read changed weights.
// Returns false, having logged one line, when the graph cannot carry them; the graph must not be run then.
bool dqrelo_graph_pass(const llama_model & model, const llm_graph_params & params);

// Nodes and leaves that the pass may add to a graph of this model.
uint32_t dqrelo_graph_extra_nodes(const llama_model & model);
