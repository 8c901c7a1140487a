// Loading, freeing and querying deltas: the part of dqrelo.h that needs no context.
#include "context/delta.h"

#include "dqrelo.h"
#include "file/error-text.h"
#include "file/fingerprint.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <set>
#include <unordered_map>

namespace {

using tensors_of_name = std::unordered_map<std::string, std::vector<const ggml_tensor *>>; // a tied matrix may be in memory twice

tensors_of_name tensors_of(const llama_model & model) {
    tensors_of_name tensors;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        tensors[name].push_back(tensor);
    }
    return tensors;
}

// The loaded model must have what the base file has: a loader may have been told to override or to skip tensors.
bool check_loaded_shapes(const tensors_of_name & tensors, const dqrelo::delta_file & file, std::string & err) {
    for (const auto & w : file.weights()) {
        const auto found = tensors.find(w.name);
        if (found == tensors.end()) {
            continue; // not loaded for this model (for instance a skipped prediction layer): dqrelo_check lists it as inert
        }
        const ggml_tensor * t = found->second.front();
        for (int d = 0; d < 4; d++) {
            if (t->ne[d] != w.ne[d]) {
                err = file.path() + ": tensor '" + w.name + "': the loaded model has another shape than the delta's base (ne[" +
                      std::to_string(d) + "] is " + std::to_string(t->ne[d]) + ", expected " + std::to_string(w.ne[d]) +
                      "). Is this the base that the delta was made from?";
                return false;
            }
        }
    }
    return true;
}

// Finds out where each weight of the delta is needed.
bool place(dqrelo_delta & delta, const tensors_of_name & tensors, std::string & err) {
    const auto & weights = delta.file->weights();
    for (size_t i = 0; i < weights.size(); i++) {
        const auto   found = tensors.find(weights[i].name);
        const size_t first = delta.copies.size();
        for (size_t k = 0; found != tensors.end() && k < found->second.size(); k++) {
            const dqrelo::placement p = dqrelo::placement_of(found->second[k]);
            if (!p.problem.empty()) {
                err = delta.file->path() + ": tensor '" + weights[i].name + "' " + p.problem;
                return false;
            }
            const auto same = [&](const dqrelo_delta::weight_copy & copy) { return copy.buft == p.buft; };
            if (std::none_of(delta.copies.begin() + (ptrdiff_t) first, delta.copies.end(), same)) {
                delta.copies.push_back({ i, p.how, p.buft });
            }
        }
    }
    return true;
}

// Indices of the weights that a memory needs, by memory.
using weights_of_memory = std::map<ggml_backend_buffer_type_t, std::vector<size_t>>;

weights_of_memory weights_by(const dqrelo_delta & delta, dqrelo::method how) {
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
        (copy.how == dqrelo::method::mapped ? mapped : on_device)[copy.weight] = true;
    }
    std::vector<size_t> unmapped;
    for (size_t i = 0; i < mapped.size(); i++) {
        if (on_device[i] && !mapped[i]) {
            unmapped.push_back(i);
        }
    }
    return unmapped;
}

void count_memory(dqrelo_delta & delta) {
    size_t n_mapped = delta.file->n_bytes_mapped();
    for (size_t i : unmapped_weights(delta)) {
        n_mapped -= delta.file->weights()[i].n_bytes;
    }
    std::map<std::string, size_t> on_device;
    for (const auto & [buft, weights] : weights_by(delta, dqrelo::method::fused)) {
        on_device[ggml_backend_buft_name(buft)] += dqrelo::device_pack::bytes_needed(*delta.file, buft, weights);
    }
    for (const auto & [buft, weights] : weights_by(delta, dqrelo::method::composed)) {
        on_device[ggml_backend_buft_name(buft)] += dqrelo::composed_pack::bytes_needed(*delta.file, buft, weights);
    }
    const auto on_host = on_device.extract("CPU"); // where DQRELO_COMPOSED is set
    delta.memory.emplace_back("CPU", n_mapped + (on_host.empty() ? 0 : on_host.mapped()));
    delta.memory.insert(delta.memory.end(), on_device.begin(), on_device.end());
}

// Says once for each device how deltas run there.
void log_composed(ggml_backend_buffer_type_t buft) {
    static std::mutex                           mutex;
    static std::set<ggml_backend_buffer_type_t> logged;
    const std::lock_guard<std::mutex>           lock(mutex);
    if (logged.insert(buft).second) {
        const char * why = dqrelo::all_composed() ? "is to do without the DQRELO operator (DQRELO_COMPOSED)" : "has no DQRELO operator";
        LLAMA_LOG_INFO("dqrelo: %s %s: deltas run as ordinary ggml ops there (composed path)\n",
                       ggml_backend_dev_name(dqrelo::device_of(buft)), why);
    }
}

// Copies to devices what is needed there, and lets go of the file's pages that nothing else reads.
bool load_packs(dqrelo_delta & delta, std::string & err) {
    for (const auto & [buft, weights] : weights_by(delta, dqrelo::method::fused)) {
        delta.packs[buft] = dqrelo::device_pack::load(*delta.file, buft, weights, err);
        if (!delta.packs[buft]) {
            return false;
        }
    }
    for (const auto & [buft, weights] : weights_by(delta, dqrelo::method::composed)) {
        log_composed(buft);
        delta.composed[buft] = dqrelo::composed_pack::load(*delta.file, buft, weights, err);
        if (!delta.composed[buft]) {
            return false;
        }
    }
    for (size_t i : unmapped_weights(delta)) {
        delta.file->discard(i);
    }
    return true;
}

bool check_base(dqrelo_delta & delta, const char * path_model, bool allow_other_bytes, std::string & err) {
    const auto base = dqrelo::base_file::open(path_model, err);
    if (!base) {
        return false;
    }
    if (!dqrelo::check_shapes(*delta.file, *base, err)) { // first: another architecture has the clearer line
        return false;
    }
    const auto cmp       = dqrelo::compare(*delta.file, *base);
    delta.same_base_file = cmp.match == dqrelo::base_match::same_file;
    if (cmp.match == dqrelo::base_match::other_model) {
        err = cmp.reason;
    } else if (cmp.match == dqrelo::base_match::same_model && !allow_other_bytes) {
        err = cmp.reason + ". Another quantisation of the base can be allowed (--delta-allow-other-base, allow_other_base=True)";
    }
    return err.empty();
}

// As in a merged model: llama.cpp takes the ids that the file names, and every token whose text means an end, which the base's vocabulary
// has found.
std::vector<llama_token> end_tokens(const dqrelo::delta_file & file, const llama_vocab & vocab) {
    std::vector<llama_token> eog = file.eog_tokens();
    if (eog.empty()) {
        return eog;
    }
    for (llama_token id = 0; id < (llama_token) vocab.n_tokens(); id++) {
        if (vocab.is_eog(id) && std::find(eog.begin(), eog.end(), id) == eog.end()) {
            eog.push_back(id);
        }
    }
    return eog;
}

std::unique_ptr<dqrelo_delta> load(const llama_model & model, const char * path_model, const char * path, const dqrelo_load_params & params,
                                   std::string & err) {
    auto delta   = std::make_unique<dqrelo_delta>();
    delta->model = &model;
    delta->file  = dqrelo::delta_file::open(path, err);
    if (!delta->file) {
        return nullptr;
    }
    if (!check_base(*delta, path_model, params.allow_other_base_bytes, err)) {
        return nullptr;
    }
    const tensors_of_name tensors = tensors_of(model);
    if (!check_loaded_shapes(tensors, *delta->file, err) || !place(*delta, tensors, err)) {
        return nullptr;
    }
    if (params.verify && !delta->file->verify(err)) {
        return nullptr;
    }
    if (!load_packs(*delta, err)) {
        return nullptr;
    }
    count_memory(*delta);

    delta->eog = end_tokens(*delta->file, model.vocab);
    for (const auto & key : delta->file->meta_keys()) {
        delta->meta[key] = delta->file->meta_str(key).value_or("");
    }
    return delta;
}

} // namespace

dqrelo_load_params dqrelo_load_default_params(void) {
    return { /*.allow_other_base_bytes =*/false, /*.verify =*/false };
}

dqrelo_delta * dqrelo_load(const llama_model * model, const char * path_model, const char * path, dqrelo_load_params params, char * err,
                           size_t n_err) {
    std::string                   text;
    std::unique_ptr<dqrelo_delta> delta;
    try {
        delta = load(*model, path_model, path, params, text);
    } catch (const std::exception & e) { // out of memory, or an I/O error of the standard library
        text = std::string(path) + ": " + e.what();
    }
    dqrelo::copy_error(text, err, n_err);
    return delta.release();
}

bool dqrelo_free(dqrelo_delta * delta) {
    if (delta && delta->n_bound > 0) {
        return false;
    }
    delete delta;
    return true;
}

const char * dqrelo_name(const dqrelo_delta * delta) {
    return delta->file->name().c_str();
}
const char * dqrelo_path(const dqrelo_delta * delta) {
    return delta->file->path().c_str();
}
const char * dqrelo_content_hash(const dqrelo_delta * delta) {
    return delta->file->content_hash().c_str();
}

const char * dqrelo_chat_template(const dqrelo_delta * delta) {
    const auto & tmpl = delta->file->chat_template();
    return tmpl ? tmpl->c_str() : nullptr;
}

const char * dqrelo_meta_str(const dqrelo_delta * delta, const char * key) {
    const auto it = delta->meta.find(key);
    return it == delta->meta.end() ? nullptr : it->second.c_str();
}

bool dqrelo_same_base_file(const dqrelo_delta * delta) {
    return delta->same_base_file;
}
double dqrelo_ratio(const dqrelo_delta * delta) {
    return delta->file->ratio();
}
size_t dqrelo_n_bytes(const dqrelo_delta * delta) {
    return delta->file->n_bytes();
}
int32_t dqrelo_n_weights(const dqrelo_delta * delta) {
    return (int32_t) delta->file->weights().size();
}
int32_t dqrelo_n_bound(const dqrelo_delta * delta) {
    return delta->n_bound;
}

int32_t dqrelo_eog_tokens(const dqrelo_delta * delta, llama_token * ids, int32_t n_max) {
    for (int32_t i = 0; i < (int32_t) delta->eog.size() && i < n_max; i++) {
        ids[i] = delta->eog[i];
    }
    return (int32_t) delta->eog.size();
}

const char * dqrelo_memory(const dqrelo_delta * delta, int32_t i, size_t * n_bytes) {
    if (i < 0 || i >= (int32_t) delta->memory.size()) {
        return nullptr;
    }
    *n_bytes = delta->memory[i].second;
    return delta->memory[i].first.c_str();
}

size_t dqrelo_bytes_needed(const llama_model * model, const char * path) {
    const bool on_host = std::all_of(model->tensors_by_name.begin(), model->tensors_by_name.end(),
                                     [](const auto & tensor) { return dqrelo::placement_of(tensor.second).how == dqrelo::method::mapped; });
    std::string  err;
    dqrelo_delta delta;
    delta.file = on_host ? nullptr : dqrelo::delta_file::open_header(path, err); // most often there is no need to look into the file
    if (!delta.file || !place(delta, tensors_of(*model), err)) {
        std::error_code code;
        const auto      n_bytes = std::filesystem::file_size(path, code);
        return code ? 0 : (size_t) n_bytes;
    }
    count_memory(delta);
    size_t n_bytes = 0;
    for (const auto & memory : delta.memory) {
        n_bytes += memory.second;
    }
    return n_bytes;
}

const char * dqrelo_inert_weight(const dqrelo_delta * delta, int32_t i) {
    return i >= 0 && i < (int32_t) delta->inert.size() ? delta->inert[i].c_str() : nullptr;
}
