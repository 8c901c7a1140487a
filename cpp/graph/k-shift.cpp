// Context shifts of sequences whose deltas change RoPE factors: dqrelo_k_shift of dqrelo-hooks.h.
#include "context/context-state.h"
#include "context/delta.h"
#include "dqrelo-hooks.h"
#include "graph/composed-delta.h"
#include "memory/placement.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

// Where ggml_rope_ext keeps these among a node's op_params.
constexpr int ROPE_PARAM_FREQ_SCALE  = 6;
constexpr int ROPE_PARAM_EXT_FACTOR  = 7;
constexpr int ROPE_PARAM_ATTN_FACTOR = 8;

constexpr int ROPE_SRC_POSITIONS = 1;
constexpr int ROPE_SRC_FACTORS   = 2;

using binding = dqrelo_context::binding;

// Returns the names of the tensors that a K-shift of this model may read.
std::set<std::string> factor_names(const llama_context & ctx) {
    std::set<std::string> names;
    const llama_model &   model = ctx.get_model();
    for (size_t il = 0; il < model.layers.size(); il++) {
        if (const ggml_tensor * factors = model.get_rope_factors(ctx.get_cparams(), (int) il)) {
            names.insert(factors->name);
        }
    }
    return names;
}

// Writes what the graph of a rotation reads: its cells' shifts, 0 for the others', and each part of its binding.
class rotation_input : public llm_graph_input_i {
public:
    rotation_input(std::vector<int32_t> rotation_of_cell, int32_t rotation, binding bound, ggml_tensor * k_shift,
                   std::vector<ggml_tensor *> tokens) :
        rotation_of_cell(std::move(rotation_of_cell)),
        rotation(rotation),
        bound(std::move(bound)),
        k_shift(k_shift),
        tokens(std::move(tokens)) {}

    // Comes after the cache's own input, which writes the shifts of all cells.
    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);
        GGML_ASSERT(ggml_backend_buffer_is_host(k_shift->buffer));
        for (size_t cell = 0; cell < rotation_of_cell.size(); cell++) {
            if (rotation_of_cell[cell] != rotation) {
                ((int32_t *) k_shift->data)[cell] = 0;
            }
        }
        for (size_t k = 0; k < tokens.size(); k++) {
            if (tokens[k]->buffer) {
                const float token[2] = { (float) bound[k].delta_index, bound[k].request_scale };
                ggml_backend_tensor_set(tokens[k], token, 0, sizeof(token));
            }
        }
    }

private:
    std::vector<int32_t>       rotation_of_cell;
    int32_t                    rotation;
    binding                    bound;
    ggml_tensor *              k_shift; // I32 [n_cells]
    std::vector<ggml_tensor *> tokens;  // F32 [2, 1] for each part
};

// Returns copy + request scale x D_hat of the weight, of which `copy` is one, or `copy` itself where the delta does not change it.
ggml_tensor * merged_copy(const dqrelo_context & dctx, const dqrelo_context::part & part, ggml_context * ctx, const ggml_tensor * weight,
                          ggml_tensor * copy, ggml_tensor * tokens) {
    const dqrelo_delta & delta = *dctx.active[part.delta_index].delta;
    const int64_t        i     = delta.file->find(weight->name);
    if (i < 0) {
        return copy;
    }
    const dqrelo::placement place = dqrelo::placement_of(weight);
    if (place.how != dqrelo::method::composed) {
        const int32_t stride[3] = { 0, 0, 0 };
        return ggml_dqrelo(ctx, DQRELO_FORM_ADD, copy, copy, nullptr, dctx.tables.find(weight), tokens, stride);
    }
    ggml_tensor * d = dqrelo::composed_whole(ctx, *delta.composed.at(place.buft)->find((size_t) i));
    return ggml_add(ctx, copy, ggml_scale(ctx, ggml_reshape_1d(ctx, d, ggml_nelements(d)), part.request_scale));
}

// A graph of the K-shift rotates all cells, those of others by 0. That must not multiply them once more by the factor that YaRN has for
// attention, so it is made 1 (rope_yarn in ggml multiplies it by the logarithm's term).
void neutralise_attn_factor(ggml_tensor * rope) {
    const float ext_factor  = ggml_get_op_params_f32(rope, ROPE_PARAM_EXT_FACTOR);
    const float freq_scale  = ggml_get_op_params_f32(rope, ROPE_PARAM_FREQ_SCALE);
    const float attn_factor = ext_factor != 0.0f ? 1.0f / (1.0f + 0.1f * logf(1.0f / freq_scale)) : 1.0f;
    ggml_set_op_params_f32(rope, ROPE_PARAM_ATTN_FACTOR, attn_factor);
}

} // namespace

// A cell that several sequences share is the first one's: they have one delta, as the rows that were computed for it had. The base's cells
// are the first rotation, whose graph does all that llama.cpp's own does, so they come out the same bit for bit.
dqrelo_k_shift::dqrelo_k_shift(llama_context & ctx, const llama_kv_cache & cache) : ctx(ctx), dctx(ctx.dqrelo.get()) {
    rotation_of_cell.assign((size_t) cache.get_size() * cache.get_n_stream(), -1);
    if (!dctx) {
        return;
    }
    const std::set<std::string> names   = factor_names(ctx);
    const auto                  changes = [&](llama_seq_id seq_id) {
        const binding & bound = dctx->seqs[seq_id];
        return std::any_of(names.begin(), names.end(), [&](const std::string & name) {
            return std::any_of(bound.begin(), bound.end(), [&](const dqrelo_context::part & part) {
                return dctx->active[part.delta_index].delta->file->find(name) >= 0;
            });
        });
    };
    std::vector<llama_seq_id> seqs(dctx->seqs.size());
    std::iota(seqs.begin(), seqs.end(), 0);
    std::stable_partition(seqs.begin(), seqs.end(), [&](llama_seq_id seq_id) { return !changes(seq_id); });
    for (llama_seq_id seq_id : seqs) {
        add_cells(cache, seq_id, changes(seq_id) ? seq_id : -1);
    }
}

void dqrelo_k_shift::add_cells(const llama_kv_cache & cache, int32_t seq_id, int32_t owner) {
    const auto & cells = cache.get_cells(seq_id);
    const size_t first = (size_t) cache.get_stream(seq_id) * cache.get_size();
    for (uint32_t i = 0; i < cells.size(); i++) {
        if (rotation_of_cell[first + i] < 0 && !cells.is_empty(i) && cells.get_shift(i) != 0 && cells.seq_has(i, seq_id)) {
            rotation_of_cell[first + i] = rotation_of(owner);
        }
    }
}

int32_t dqrelo_k_shift::rotation_of(int32_t owner) {
    const auto same = [&](int32_t other) { return other == owner || (other >= 0 && owner >= 0 && dctx->seqs[other] == dctx->seqs[owner]); };
    const auto at   = std::find_if(rotations.begin(), rotations.end(), same);
    const auto i    = (int32_t) (at - rotations.begin());
    if (at == rotations.end()) {
        rotations.push_back(owner);
    }
    return i;
}

void dqrelo_k_shift::apply(llm_graph_result & res) const {
    if (rotations.empty() || (rotations.size() == 1 && rotations[0] < 0)) {
        return; // All cells are rotated by the base's factors, so the graph stays llama.cpp's own.
    }
    const binding              bound     = rotations[current] < 0 ? binding() : dctx->seqs[rotations[current]];
    ggml_context *             graph_ctx = res.get_ctx();
    ggml_cgraph *              gf        = res.get_gf();
    std::vector<ggml_tensor *> nodes(ggml_graph_nodes(gf), ggml_graph_nodes(gf) + ggml_graph_n_nodes(gf));
    std::vector<ggml_tensor *> tokens;
    for (size_t k = 0; k < bound.size(); k++) {
        tokens.push_back(ggml_new_tensor_2d(graph_ctx, GGML_TYPE_F32, 2, 1));
        ggml_set_input(tokens[k]);
        ggml_format_name(tokens[k], "dqrelo_tokens_%zu", k);
    }

    std::unordered_map<ggml_tensor *, ggml_tensor *> merged; // Maps RoPE factors to their copy with the deltas.
    ggml_tensor *                                    k_shift = nullptr;
    for (ggml_tensor * node : nodes) {
        if (node->op != GGML_OP_ROPE) {
            continue;
        }
        k_shift = node->src[ROPE_SRC_POSITIONS];
        if (current > 0) {
            neutralise_attn_factor(node);
        }
        ggml_tensor * factors = node->src[ROPE_SRC_FACTORS];
        if (!factors) {
            continue;
        }
        ggml_tensor *& copy = merged[factors];
        if (!copy) {
            copy = factors;
            for (size_t k = 0; k < bound.size(); k++) {
                copy = merged_copy(*dctx, bound[k], graph_ctx, factors, copy, tokens[k]);
            }
        }
        node->src[ROPE_SRC_FACTORS] = copy;
    }
    if (!k_shift) {
        return; // No layer rotates its keys.
    }
    ggml_graph_clear(gf);
    for (ggml_tensor * node : nodes) {
        ggml_build_forward_expand(gf, node);
    }
    res.add_input(std::make_unique<rotation_input>(rotation_of_cell, (int32_t) current, bound, k_shift, tokens));
}

bool dqrelo_k_shift::next() {
    if (current + 1 >= rotations.size()) {
        return false;
    }
    current++;
    ctx.synchronize(); // The inputs of the rotation before may still be read.
    return true;
}
