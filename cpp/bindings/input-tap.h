// input-tap.h: shows what the weights of a model multiply, while its graphs run.
#pragma once

#include "llama.h"
#include "resume-point.h"

#include "ggml-backend.h"

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

// Rows that weights have multiplied in one graph.
struct tapped_rows {
    const std::string &  weight;  // the first weight of the graph that reads these rows
    std::vector<float>   data;    // [n_rows, n_in]
    std::vector<int32_t> experts; // the matrix of a stack that each row was multiplied with; empty where there is one
    int64_t              n_in;
};

// Watches the graphs of one context, as its cb_eval. Each node is computed by itself then, so it costs speed.
//
//     weight [n_in, n_out]            x rows [n_in, n_tokens]                        -> MUL_MAT
//     weight [n_in, n_out, n_expert]  x rows [n_in, 1 or n_used, n_tokens], ids      -> MUL_MAT_ID
//
// Products of another shape, such as those of a weight's views, are passed over.
class input_tap {
public:
    using visit_fn = std::function<void(const tapped_rows &)>;

    // Watches this context, whose cb_eval is on_node.
    void attach(llama_context * ctx);

    // Shows the inputs of these weights until stop(). A graph ends where it has shown them all, so what it was to compute is not there.
    // With points, one for each sequence, graph i begins at point i, which goes on to the first of the weights.
    void start(std::unordered_set<std::string> names, visit_fn fn, std::vector<resume_point> * points);
    void stop();

    // Throws what the function threw, or a point that is not the graph's. The graph ended there.
    void check() const;

    // Returns whether the last graph ended before its last node: it has shown them all, or check() throws.
    bool has_ended() const;

    // Weights that read the same rows as another one, which stands for them.
    const std::unordered_map<std::string, std::string> & aliases() const { return alias_of; }

    // ggml_backend_sched_eval_callback. `user` is an input_tap.
    static bool on_node(ggml_tensor * node, bool ask, void * user);

private:
    bool ask(ggml_tensor * node);
    bool computed(ggml_tensor * node);
    bool wants(const ggml_tensor * node) const;
    bool is_last(const ggml_tensor * node) const;
    void show(const ggml_tensor * node);

    std::unordered_set<std::string>                      wanted;
    visit_fn                                             visit;
    std::unordered_map<std::string, std::string>         alias_of;
    std::unordered_map<const ggml_tensor *, std::string> reader_of; // of the present graph: who reads a tensor first
    std::unordered_set<std::string>                      seen;      // weights of the present graph
    std::exception_ptr                                   thrown;    // An exception must not pass through ggml.

    llama_context *             ctx    = nullptr;
    ggml_cgraph *               graph  = nullptr; // the last that was built
    std::vector<resume_point> * points = nullptr; // NULL where all is computed
    size_t                      i_next = 0;       // the point of the next graph
    resumed_graph               resumed;
};
