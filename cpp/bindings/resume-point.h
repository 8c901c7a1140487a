// resume-point.h: where the graph of some sequences goes on that was run before, so that what lies before is not computed again.
//
//     first run    node 0 ... node at-1 | the rest          The bytes that the rest reads of what lies before are kept.
//     later run      (left out)         | the rest          They are put back, each where it was computed.
//
// A weight that only the rest reads may differ between the runs.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

// Belongs to the sequences of one graph.
struct resume_point {
    // Bytes that nodes before `at` have written and others read: those of source `src` of node `reader`, or of the memory that the reader
    // itself writes a part of (-1).
    struct part {
        int32_t           reader;
        int32_t           src;
        std::vector<char> bytes;
    };

    std::vector<std::vector<int32_t>> sequences; // the tokens of each
    int32_t                           at = 0;    // This is the first node that is computed.
    std::string                       weight;    // Node `at` multiplies by it.
    std::vector<part>                 parts;
};

// Returns a tensor's bytes as they lie, gaps included, from its first element to its last.
std::vector<char> bytes_of(const ggml_tensor * tensor);

// A graph that is run from a point on. Its nodes are told of in sequence, each before and some after they are computed.
class resumed_graph {
public:
    // Begins at the point, or at the first node where that is empty. Throws input_error if the point is that of another graph.
    void begin(ggml_cgraph * graph, const resume_point & from);

    // Makes a node that lies before the point one that computes nothing. Returns whether after() must be called next, once it was computed.
    bool before(ggml_tensor * node);

    // Makes a node one that computes nothing, until after().
    void leave_out(ggml_tensor * node);

    // Makes nodes that were left out what they were, and puts back what this one had computed. Returns whether it lies before the point.
    bool after(ggml_tensor * node);

    // Moves the point of this graph on to a node that multiplies by a weight and is the next to be computed, or was the last.
    void move_to(const ggml_tensor * node, resume_point & point) const;

private:
    bool          is_before(const ggml_tensor * node) const;
    ggml_tensor * memory_of(int32_t reader, int32_t src) const;

    ggml_cgraph *                                                      graph = nullptr;
    int32_t                                                            at    = 0;
    std::unordered_map<const ggml_tensor *, int32_t>                   index_of;
    std::unordered_map<const ggml_tensor *, const std::vector<char> *> kept;     // what is put back after a node
    std::vector<std::pair<ggml_tensor *, ggml_op>>                     left_out; // until they are passed
};
