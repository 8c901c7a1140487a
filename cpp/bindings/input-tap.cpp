#include "input-tap.h"

#include "dqrelo.h"
#include "ggml.h"

#include <utility>

void input_tap::start(std::unordered_set<std::string> names, visit_fn fn, std::vector<resume_point> * new_points) {
    wanted = std::move(names);
    visit  = std::move(fn);
    points = new_points;
    i_next = 0;
    thrown = nullptr;
    alias_of.clear();
    reader_of.clear();
    seen.clear();
}

void input_tap::stop() {
    wanted.clear();
    visit  = nullptr;
    points = nullptr;
}

void input_tap::check() const {
    if (thrown != nullptr) {
        std::rethrow_exception(thrown);
    }
}

void input_tap::attach(llama_context * new_ctx) {
    ctx = new_ctx;
    // A node does not know who reads it.
    dqrelo_watch_graphs(ctx, [](ggml_cgraph * built, void * user) { static_cast<input_tap *>(user)->graph = built; }, this);
}

bool input_tap::wants(const ggml_tensor * node) const {
    if (visit == nullptr || (node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID)) {
        return false;
    }
    const ggml_tensor * weight = node->src[0];
    const ggml_tensor * rows   = node->src[1];
    if (rows->type != GGML_TYPE_F32 || weight->view_src != nullptr || wanted.count(weight->name) == 0) {
        return false;
    }
    return node->op == GGML_OP_MUL_MAT_ID || (weight->ne[2] == 1 && weight->ne[3] == 1);
}

bool input_tap::on_node(ggml_tensor * node, bool ask, void * user) {
    auto * self = static_cast<input_tap *>(user);
    if (self->visit == nullptr) {
        return !ask;
    }
    bool goes_on = ask; // After an exception the node is computed, and the graph ends there.
    try {
        goes_on = ask ? self->ask(node) : self->computed(node);
    } catch (...) {
        self->thrown = std::current_exception();
    }
    if (!ask && !goes_on) {
        dqrelo_end_graph(self->ctx);
    }
    return goes_on;
}

// Returns whether a node, not yet computed, is to be computed by itself.
bool input_tap::ask(ggml_tensor * node) {
    if (thrown != nullptr) {
        return true;
    }
    if (node == ggml_graph_node(graph, 0)) {
        seen.clear();
        reader_of.clear();
        if (points != nullptr) {
            resumed.begin(graph, points->at(i_next++));
        }
    }
    if (points == nullptr) {
        return wants(node);
    }
    if (resumed.before(node)) {
        return true;
    }
    if (!wants(node)) {
        return false;
    }
    if (is_last(node)) { // Its rows are shown, and what they give is not needed.
        resumed.leave_out(node);
    }
    return true;
}

// Returns whether the graph goes on.
bool input_tap::computed(ggml_tensor * node) {
    if (thrown != nullptr) {
        return false;
    }
    const bool is_passed = points != nullptr && resumed.after(node);
    if (is_passed || !wants(node)) {
        return true;
    }
    const bool is_first = seen.empty();
    show(node);
    if (points != nullptr && is_first) {
        resumed.move_to(node, points->at(i_next - 1));
    }
    return !has_ended();
}

// Returns whether a graph ends with this node, which is wanted.
bool input_tap::is_last(const ggml_tensor * node) const {
    return seen.size() + 1 == wanted.size() && seen.count(node->src[0]->name) == 0;
}

bool input_tap::has_ended() const {
    return thrown != nullptr || seen.size() == wanted.size();
}

namespace {

// Appends a row of F32 that begins at an offset.
void append_row(std::vector<float> & out, const std::vector<char> & bytes, size_t offset, size_t stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        out.push_back(*reinterpret_cast<const float *>(bytes.data() + offset + (size_t) i * stride));
    }
}

// Reads the rows of a product with a matrix.
void read_rows(const ggml_tensor * rows, tapped_rows & found) {
    if (ggml_is_contiguous(rows)) {
        found.data.resize((size_t) ggml_nelements(rows));
        ggml_backend_tensor_get(rows, found.data.data(), 0, ggml_nbytes(rows));
        return;
    }
    const std::vector<char> bytes = bytes_of(rows);
    for (int64_t i3 = 0; i3 < rows->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < rows->ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < rows->ne[1]; ++i1) {
                const size_t offset = (size_t) i1 * rows->nb[1] + (size_t) i2 * rows->nb[2] + (size_t) i3 * rows->nb[3];
                append_row(found.data, bytes, offset, rows->nb[0], rows->ne[0]);
            }
        }
    }
}

// Reads those of a product with a stack, a row for each expert that its token goes to. ids: [n_used, n_tokens].
void read_expert_rows(const ggml_tensor * rows, const ggml_tensor * ids, tapped_rows & found) {
    const std::vector<char> bytes     = bytes_of(rows);
    const std::vector<char> ids_bytes = bytes_of(ids);
    for (int64_t i_token = 0; i_token < ids->ne[1]; ++i_token) {
        for (int64_t i_used = 0; i_used < ids->ne[0]; ++i_used) {
            const size_t at = (size_t) i_used * ids->nb[0] + (size_t) i_token * ids->nb[1];
            found.experts.push_back(*reinterpret_cast<const int32_t *>(ids_bytes.data() + at));
            const size_t offset = (size_t) (i_used % rows->ne[1]) * rows->nb[1] + (size_t) i_token * rows->nb[2];
            append_row(found.data, bytes, offset, rows->nb[0], rows->ne[0]);
        }
    }
}

} // namespace

void input_tap::show(const ggml_tensor * node) {
    const ggml_tensor * rows = node->src[1];
    const std::string   name = node->src[0]->name;
    seen.insert(name);
    const auto [reader, is_first] = reader_of.emplace(rows, name);
    if (!is_first) {
        alias_of.emplace(name, reader->second);
        return;
    }
    tapped_rows found{ name, {}, {}, rows->ne[0] };
    if (node->op == GGML_OP_MUL_MAT) {
        read_rows(rows, found);
    } else {
        read_expert_rows(rows, node->src[2], found);
    }
    visit(found);
}
