// Loading and freeing deltas.
#include "context/delta-base.h"
#include "context/delta-placement.h"
#include "context/delta.h"

#include "dqrelo.h"
#include "file/error-text.h"

#include "llama-model.h"

#include <algorithm>
#include <exception>

namespace {

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
    if (!dqrelo::check_base(*delta, path_model, params.allow_other_base_bytes, err)) {
        return nullptr;
    }
    if (!dqrelo::check_tokens(model, *delta->file, err)) {
        return nullptr;
    }
    if (!dqrelo::check_loaded_shapes(model, *delta->file, err) || !dqrelo::find_copies(*delta, model, err)) {
        return nullptr;
    }
    if (params.verify && !delta->file->verify(err)) {
        return nullptr;
    }
    if (!dqrelo::load_packs(*delta, err)) {
        return nullptr;
    }
    dqrelo::count_memory(*delta);

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
