#include "resume-point.h"

#include "ggml-backend.h"
#include "loaded-delta.h"

#include <unordered_set>

namespace {

// Returns the tensor whose memory a tensor lies in.
ggml_tensor * owner_of(ggml_tensor * tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

[[noreturn]] void fail() {
    throw input_error("visit_inputs: a text's graph is another one than that of the run before. Begin again without its points");
}

} // namespace

std::vector<char> bytes_of(const ggml_tensor * tensor) {
    std::vector<char> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

// Returns null where there is none.
ggml_tensor * resumed_graph::memory_of(int32_t reader, int32_t src) const {
    ggml_tensor * node = ggml_graph_node(graph, reader);
    if (src < 0) {
        return node->view_src;
    }
    return node->src[src] == nullptr ? nullptr : owner_of(node->src[src]);
}

void resumed_graph::begin(ggml_cgraph * new_graph, const resume_point & from) {
    graph = new_graph;
    at    = from.at;
    index_of.clear();
    kept.clear();
    left_out.clear();
    const int32_t n_nodes = ggml_graph_n_nodes(graph);
    for (int32_t i = 0; i < n_nodes; ++i) {
        index_of.emplace(ggml_graph_node(graph, i), i);
    }
    if (at == 0) {
        return;
    }
    const ggml_tensor * first = at < n_nodes ? ggml_graph_node(graph, at)->src[0] : nullptr;
    if (first == nullptr || from.weight != first->name) {
        fail();
    }
    for (const resume_point::part & part : from.parts) {
        ggml_tensor * memory = part.reader < n_nodes ? memory_of(part.reader, part.src) : nullptr;
        if (memory == nullptr || ggml_nbytes(memory) != part.bytes.size()) {
            fail();
        }
        if (index_of.count(memory) > 0) {
            kept.emplace(memory, &part.bytes);
        } else { // It lies outside of the graph, as the cells of a layer do.
            ggml_backend_tensor_set(memory, part.bytes.data(), 0, part.bytes.size());
        }
    }
}

bool resumed_graph::is_before(const ggml_tensor * node) const {
    const auto found = index_of.find(node);
    return found != index_of.end() && found->second < at;
}

bool resumed_graph::before(ggml_tensor * node) {
    if (!is_before(node)) {
        return false;
    }
    leave_out(node);
    return kept.count(node) > 0 || index_of.at(node) == at - 1;
}

void resumed_graph::leave_out(ggml_tensor * node) {
    left_out.emplace_back(node, node->op);
    node->op = GGML_OP_NONE;
}

bool resumed_graph::after(ggml_tensor * node) {
    for (const auto & [passed, op] : left_out) { // The graph may be run again.
        passed->op = op;
    }
    left_out.clear();
    const auto found = kept.find(node);
    if (found != kept.end()) {
        ggml_backend_tensor_set(node, found->second->data(), 0, found->second->size());
    }
    return is_before(node);
}

void resumed_graph::move_to(const ggml_tensor * node, resume_point & point) const {
    const int32_t                           next = index_of.at(node);
    std::vector<resume_point::part>         parts;
    std::unordered_set<const ggml_tensor *> written;
    for (int32_t i = 0; i < next; ++i) {
        written.insert(owner_of(ggml_graph_node(graph, i)));
    }
    for (int32_t i = next; i < ggml_graph_n_nodes(graph); ++i) {
        for (int32_t src = -1; src < GGML_MAX_SRC; ++src) {
            const ggml_tensor * memory = memory_of(i, src);
            if (written.erase(memory) > 0) {
                parts.push_back({ i, src, bytes_of(memory) });
            }
        }
    }
    point.weight = node->src[0]->name;
    point.parts  = std::move(parts); // All of it at last: without memory for a part the point stays where it was.
    point.at     = next;
}
