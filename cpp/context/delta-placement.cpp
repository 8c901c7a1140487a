#include "context/delta-placement.h"

#include "dqrelo.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <set>

namespace dqrelo {

namespace {

// Indices of the weights that a memory needs, by memory.
using weights_of_memory = std::map<ggml_backend_buffer_type_t, std::vector<size_t>>;

weights_of_memory weights_by(const dqrelo_delta & delta, method how) {
    weights_of_memory weights;
    for (const auto & copy : delta.copies) {
        if (copy.how == how) {
            weights[copy.buft].push_back(copy.weight);
        }
    }
    return weights;
}

// Weights of which the mapped file is not read, once devices have their copies.
std::vector<size_t> unmapped_weights(const dqrelo_delta & delta) {
    std::vector<bool> on_device(delta.file->weights().size());
    std::vector<bool> mapped(delta.file->weights().size());
    for (const auto & copy : delta.copies) {
        (copy.how == method::mapped ? mapped : on_device)[copy.weight] = true;
    }
    std::vector<size_t> unmapped;
    for (size_t i = 0; i < mapped.size(); i++) {
        if (on_device[i] && !mapped[i]) {
            unmapped.push_back(i);
        }
    }
    return unmapped;
}

// Says once for each device how deltas run there.
void log_composed(ggml_backend_buffer_type_t buft) {
    static std::mutex                           mutex;
    static std::set<ggml_backend_buffer_type_t> logged;
    const std::lock_guard<std::mutex>           lock(mutex);
    if (logged.insert(buft).second) {
        const char * why = all_composed() ? "is to do without the DQRELO operator (DQRELO_COMPOSED)" : "has no DQRELO operator";
        LLAMA_LOG_INFO("dqrelo: %s %s: deltas run as ordinary ggml ops there (composed path)\n", ggml_backend_dev_name(device_of(buft)),
                       why);
    }
}

} // namespace

tensors_by_name tensors_of(const llama_model & model) {
    tensors_by_name tensors;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        tensors[name].push_back(tensor);
    }
    return tensors;
}

bool lies_on_cpu(const llama_model & model) {
    return std::all_of(model.tensors_by_name.begin(), model.tensors_by_name.end(), [](const auto & named) {
        const placement p = placement_of(named.second);
        return p.how == method::mapped && p.problem.empty();
    });
}

bool find_copies(dqrelo_delta & delta, const llama_model & model, std::string & err) {
    const tensors_by_name tensors = tensors_of(model);
    const auto &          weights = delta.file->weights();
    for (size_t i = 0; i < weights.size(); i++) {
        const auto   found = tensors.find(weights[i].name);
        const size_t first = delta.copies.size();
        for (size_t k = 0; found != tensors.end() && k < found->second.size(); k++) {
            const placement p = placement_of(found->second[k]);
            if (!p.problem.empty()) {
                err = delta.file->path() + ": tensor '" + weights[i].name + "' " + p.problem;
                return false;
            }
            const auto same = [&](const dqrelo_delta::weight_copy & copy) { return copy.buft == p.buft; };
            if (p.how != method::mapped && delta.file->is_arranged(i)) {
                err = delta.file->path() + ": was opened for a model in the CPU's memory, and tensor '" + weights[i].name +
                      "' lies in that of " + ggml_backend_buft_name(p.buft);
                return false;
            }
            if (std::none_of(delta.copies.begin() + (ptrdiff_t) first, delta.copies.end(), same)) {
                delta.copies.push_back({ i, p.how, p.buft });
            }
        }
    }
    return true;
}

void count_memory(dqrelo_delta & delta) {
    size_t n_mapped = delta.file->n_bytes_mapped();
    for (size_t i : unmapped_weights(delta)) {
        n_mapped -= delta.file->weights()[i].n_bytes;
    }
    std::map<std::string, size_t> on_device;
    for (const auto & [buft, weights] : weights_by(delta, method::fused)) {
        on_device[ggml_backend_buft_name(buft)] += device_pack::bytes_needed(*delta.file, buft, weights);
    }
    for (const auto & [buft, weights] : weights_by(delta, method::composed)) {
        on_device[ggml_backend_buft_name(buft)] += composed_pack::bytes_needed(*delta.file, buft, weights);
    }
    const auto on_host = on_device.extract("CPU"); // DQRELO_COMPOSED puts them there.
    delta.memory.emplace_back("CPU", n_mapped + (on_host.empty() ? 0 : on_host.mapped()));
    delta.memory.insert(delta.memory.end(), on_device.begin(), on_device.end());
}

bool load_packs(dqrelo_delta & delta, std::string & err) {
    for (const auto & [buft, weights] : weights_by(delta, method::fused)) {
        delta.packs[buft] = device_pack::load(*delta.file, buft, weights, err);
        if (!delta.packs[buft]) {
            return false;
        }
    }
    for (const auto & [buft, weights] : weights_by(delta, method::composed)) {
        log_composed(buft);
        delta.composed[buft] = composed_pack::load(*delta.file, buft, weights, err);
        if (!delta.composed[buft]) {
            return false;
        }
    }
    for (size_t i : unmapped_weights(delta)) {
        delta.file->discard(i);
    }
    return true;
}

void arrange_signs(dqrelo_delta & delta, const is_decoding_fn & is_decoding) {
    std::vector<size_t> weights;
    for (const auto & copy : delta.copies) {
        if (copy.how == method::mapped) {
            weights.push_back(copy.weight);
        }
    }
    delta.file->arrange_signs(weights, is_decoding);
}

} // namespace dqrelo
