#include "context/delta-tables.h"

#include "memory/placement.h"

#include "ggml-backend.h"

#include <stdexcept>

namespace dqrelo {

ggml_tensor * delta_tables::find(const ggml_tensor * weight) const {
    const auto it = tables.find({ placement_of(weight).buft, weight->name });
    return it == tables.end() ? nullptr : it->second.tensor;
}

void delta_tables::make(ggml_backend_buffer_type_t buft, const std::vector<std::string> & weights) {
    auto g = std::make_unique<group>();
    g->entries.resize(weights.size() * n_deltas);
    g->ctx.reset(ggml_init({ (weights.size() + 1) * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    g->memory = ggml_new_tensor_1d(g->ctx.get(), GGML_TYPE_I8, (int64_t) (g->entries.size() * sizeof(dqrelo_entry)));
    g->buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(g->ctx.get(), buft));
    if (!g->buffer) {
        throw std::runtime_error(std::string("out of memory for the tables of deltas on ") + ggml_backend_buft_name(buft));
    }
    // The scheduler keeps an op on the backend of its weights.
    ggml_backend_buffer_set_usage(g->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (size_t i = 0; i < weights.size(); i++) {
        table t;
        t.in     = g.get();
        t.first  = i * n_deltas;
        t.tensor = ggml_view_1d(g->ctx.get(), g->memory, (int64_t) (n_deltas * sizeof(dqrelo_entry)), t.first * sizeof(dqrelo_entry));
        ggml_backend_view_init(t.tensor);
        ggml_format_name(t.tensor, "%s.dq", weights[i].c_str());
        tables[{ buft, weights[i] }] = t;
    }
    g->changed = true;
    n_version++;
    groups.push_back(std::move(g));
}

void delta_tables::set(size_t delta_index, const dqrelo_delta & delta) {
    const auto &                                                   weights = delta.file->weights();
    std::map<ggml_backend_buffer_type_t, std::vector<std::string>> missing;
    for (const auto & copy : delta.copies) {
        const std::string & name = weights[copy.weight].name;
        if (copy.how != method::composed && tables.count({ copy.buft, name }) == 0) {
            missing[copy.buft].push_back(name);
        }
    }
    for (const auto & [buft, names] : missing) {
        make(buft, names);
    }
    for (const auto & copy : delta.copies) {
        if (copy.how == method::composed) {
            continue;
        }
        const table & t                      = tables.at({ copy.buft, weights[copy.weight].name });
        t.in->entries[t.first + delta_index] = delta.entry(copy);
        t.in->changed                        = true;
    }
    write();
}

void delta_tables::clear(size_t delta_index) {
    for (auto & [key, t] : tables) {
        t.in->entries[t.first + delta_index] = {};
        t.in->changed                        = true;
    }
    write();
}

void delta_tables::write() {
    for (auto & g : groups) {
        if (g->changed) {
            ggml_backend_tensor_set(g->memory, g->entries.data(), 0, g->entries.size() * sizeof(dqrelo_entry));
            g->changed = false;
        }
    }
}

} // namespace dqrelo
