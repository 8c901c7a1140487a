// composed-check.h: whether a device has the ordinary ops that a delta would be made of on it.
#pragma once

#include <cstdint>
#include <string>

struct dqrelo_context;
struct dqrelo_delta;

namespace dqrelo {

struct graph_usage;

// Builds what the graphs of the context, which read weights as `usage` says, would add for the delta, and asks the devices about each op.
// Returns one line without the file's name, or "" if all are there; `n_nodes` is the number of nodes that the delta may then add to a
// graph.
std::string composed_problem(const dqrelo_context & dctx, const graph_usage & usage, const dqrelo_delta & delta, uint32_t & n_nodes);

} // namespace dqrelo
