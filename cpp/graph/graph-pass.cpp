// The pass over a finished graph. It finds each node that reads a weight which some delta changes, moves the node's op to a new node, and
// turns the old node, to which all consumers already point, into the delta op on top of the new one. One mechanism serves every
// architecture.
#include "context/context-state.h"
#include "context/graph-key.h"
#include "dqrelo-hooks.h"
#include "graph/finite-guard.h"
#include "graph/graph-rewriter.h"
#include "graph/read-finder.h"
#include "graph/traced-graph.h"
#include "graph/weight-usage.h"

#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace {

using dqrelo::weight_read;
using dqrelo::weight_usage;

constexpr const char * NOT_SCALED = "has a scale tensor that the graph does not multiply onto its result";

// Records how the graph reads the model's weights.
void record_usage(const llama_model & model, const llm_graph_params & params, dqrelo::graph_usage & usage) {
    dqrelo::traced_graph                      graph(params);
    dqrelo::read_finder                       finder(model, graph);
    std::unordered_map<std::string, uint32_t> n_reads;
    for (ggml_tensor * node : graph.nodes()) {
        graph.visit(node);
        for (const weight_read & read : finder.reads_of(node)) {
            weight_usage & used = usage.weights[read.weight->name];
            used.own_ubatch     = used.own_ubatch.empty() ? read.own_ubatch : used.own_ubatch;
            used.n_reads        = std::max(used.n_reads, ++n_reads[read.weight->name]);
            if (read.problem.empty() && graph.is_composed(read.weight)) {
                const dqrelo::read_shape shape = dqrelo::read_shape::of(read, graph.layout_of(read));
                if (std::find(used.composed.begin(), used.composed.end(), shape) == used.composed.end()) {
                    used.composed.push_back(shape);
                }
            }
            if (!read.problem.empty()) {
                used.problem = read.problem;
            }
        }
    }
    for (const weight_read & read : finder.unfinished()) {
        usage.weights[read.weight->name].problem = NOT_SCALED;
    }
}

// Puts the deltas onto the graph. On failure `problem` says which tensor and why.
bool rewrite(const llama_model & model, const llm_graph_params & params, std::string & problem) {
    dqrelo::traced_graph       graph(params);
    dqrelo::read_finder        finder(model, graph);
    dqrelo::graph_rewriter     rewriter(*params.dqrelo, graph);
    dqrelo::finite_guard       guard(graph);
    std::vector<ggml_tensor *> nodes = graph.nodes();
    for (ggml_tensor * node : nodes) {
        graph.visit(node);
        if (!rewriter.put(finder.reads_of(node), problem)) {
            return false;
        }
        if (!guard.visit(node)) {
            problem = "the graph writes more often into the memory than room was planned for";
            return false;
        }
    }
    for (const weight_read & read : finder.unfinished()) {
        if (rewriter.is_changed(read)) {
            problem = std::string("tensor '") + read.weight->name + "' " + NOT_SCALED;
            return false;
        }
    }
    if (ggml_tensor * sums = guard.finish()) {
        nodes.push_back(sums);
    }
    rewriter.finish(nodes);
    return true;
}

// Puts the deltas onto the graph where it has any, or records what it reads. Returns false, having logged one line, where that fails.
bool pass(const llama_model & model, const llm_graph_params & params) {
    if (params.dqrelo->scan) {
        record_usage(model, params, *params.dqrelo->scan);
        return true;
    }
    const dqrelo::graph_key key = dqrelo::graph_key::decode(params.dqrelo_key);
    if (key.is == dqrelo::graph_key::state::base) {
        return true;
    }
    if (key.is == dqrelo::graph_key::state::conflict) {
        LLAMA_LOG_ERROR(
            "dqrelo: a token of the batch belongs to several sequences that have different deltas; bind one delta to all of them\n");
        return false;
    }
    std::string problem;
    if (!rewrite(model, params, problem)) {
        LLAMA_LOG_ERROR("dqrelo: %s\n", problem.c_str());
        return false;
    }
    return true;
}

} // namespace

bool dqrelo_graph_pass(const llama_model & model, const llm_graph_params & params) {
    if (!params.dqrelo) {
        return true;
    }
    if (!pass(model, params)) {
        return false;
    }
    if (params.dqrelo->on_graph) {
        params.dqrelo->on_graph(params.res->get_gf());
    }
    return true;
}

uint32_t dqrelo_graph_extra_nodes(const llama_model & model, const dqrelo_context * dctx) {
    // There is a base node (or merged copy) and a table for each weight, and a node for each further part of a blend, twice for one that is
    // read twice (tied embeddings), and the tokens of each part.
    const uint32_t n_parts = dctx ? dctx->n_parts() : 1;
    const uint32_t n_nodes = (1 + n_parts) * (uint32_t) model.n_tensors() + 32 * n_parts;
    // A layer has more tensors than writes into a memory.
    const uint32_t n_guards = dctx ? dqrelo::finite_guard::MAX_NODES * (uint32_t) model.n_tensors() : 0;
    return n_nodes + n_guards + (dctx ? dctx->n_composed_nodes() + dqrelo::composed_graph::MAX_NODES : 0);
}
