// Loading and freeing deltas.
#include "context/delta-base.h"
#include "context/delta-placement.h"
#include "context/delta.h"

#include "dqrelo.h"
#include "file/copy-memory.h"
#include "file/error-text.h"
#include "file/fingerprint.h"

#include "llama-model.h"

#include <algorithm>
#include <exception>

namespace {

// A list of all end tokens replaces the vocabulary's. Without one it is as in a merged model: llama.cpp takes the ids that the file names,
// and every token whose text means an end, which the base's vocabulary has found.
std::vector<llama_token> end_tokens(const dqrelo::delta_file & file, const llama_vocab & vocab) {
    std::vector<llama_token> eog = file.eog_tokens();
    if (eog.empty()) {
        return eog;
    }
    // What parts files when a model fills in code is no text of an answer, and no fine-tune's list has it.
    const std::vector<llama_token> parts = { vocab.token_fim_pad(), vocab.token_fim_rep(), vocab.token_fim_sep() };
    for (llama_token id = 0; id < (llama_token) vocab.n_tokens(); id++) {
        const bool stays = !file.names_all_eog() || std::find(parts.begin(), parts.end(), id) != parts.end();
        if (stays && vocab.is_eog(id) && std::find(eog.begin(), eog.end(), id) == eog.end()) {
            eog.push_back(id);
        }
    }
    return eog;
}

// Returns the callback of dqrelo_file_params or dqrelo_load_params, for as long as they live.
template <typename P>
dqrelo::is_decoding_fn decoding_of(const P & params) {
    if (params.decode_callback == nullptr) {
        return {};
    }
    return [&params] { return params.decode_callback(params.decode_callback_data); };
}

std::unique_ptr<dqrelo_delta> load(const llama_model & model, const dqrelo::base_file & base, std::shared_ptr<dqrelo::delta_file> file,
                                   const dqrelo_load_params & params, std::string & err) {
    auto delta       = std::make_unique<dqrelo_delta>();
    delta->model     = &model;
    delta->max_scale = params.max_scale;
    delta->file      = std::move(file);
    if (!dqrelo::check_base(*delta, base, params.allow_other_base_bytes, err)) {
        return nullptr;
    }
    if (!dqrelo::check_tokens(*delta->file, model.vocab.n_tokens(), err)) {
        return nullptr;
    }
    if (!dqrelo::check_loaded_shapes(model, *delta->file, err) || !dqrelo::find_copies(*delta, model, err)) {
        return nullptr;
    }
    if (!dqrelo::load_packs(*delta, err)) {
        return nullptr;
    }
    dqrelo::count_memory(*delta);
    dqrelo::arrange_signs(*delta, decoding_of(params));

    delta->eog = end_tokens(*delta->file, model.vocab);
    for (const auto & key : delta->file->meta_keys()) {
        delta->meta[key] = delta->file->meta_str(key).value_or("");
    }
    return delta;
}

// Returns what `make` returns, or NULL with one line in `err`, also where it throws: out of memory, or an I/O error of the standard
// library.
template <typename F>
auto made(const std::string & path, char * err, size_t n_err, const F & make) {
    std::string          text;
    decltype(make(text)) made{};
    try {
        made = make(text);
    } catch (const std::exception & e) {
        text = path + ": " + dqrelo::exception_text(e);
    }
    dqrelo::copy_error(text, err, n_err);
    return made.release();
}

} // namespace

struct dqrelo_base {
    std::unique_ptr<dqrelo::base_file> file;
};

struct dqrelo_file {
    std::shared_ptr<dqrelo::delta_file> file;
};

dqrelo_base * dqrelo_base_open(const char * path_model, char * err, size_t n_err) {
    return made(path_model, err, n_err, [&](std::string & text) {
        auto file = dqrelo::base_file::open(path_model, text);
        return file ? std::make_unique<dqrelo_base>(dqrelo_base{ std::move(file) }) : nullptr;
    });
}

void dqrelo_base_free(dqrelo_base * base) {
    delete base;
}

dqrelo_file_params dqrelo_file_default_params(void) {
    return { /*.header_only =*/false,
             /*.verify =*/false,
             /*.use_mmap =*/false,
             /*.abort_callback =*/nullptr,
             /*.abort_callback_data =*/nullptr,
             /*.decode_callback =*/nullptr,
             /*.decode_callback_data =*/nullptr,
             /*.on_cpu =*/false };
}

bool dqrelo_on_cpu(const llama_model * model) {
    return dqrelo::lies_on_cpu(*model);
}

dqrelo_file * dqrelo_file_open(const char * path, dqrelo_file_params params, char * err, size_t n_err) {
    return made(path, err, n_err, [&](std::string & text) {
        dqrelo::delta_file::options options;
        options.header_only = params.header_only;
        options.use_mmap    = params.use_mmap;
        options.on_cpu      = params.on_cpu;
        options.digests     = params.verify ? dqrelo::delta_file::digest_check::always : dqrelo::delta_file::digest_check::once;
        if (params.abort_callback != nullptr) {
            options.is_aborted = [&params] { return params.abort_callback(params.abort_callback_data); };
        }
        options.is_decoding = decoding_of(params);
        auto file           = dqrelo::delta_file::open(path, options, text);
        return file ? std::make_unique<dqrelo_file>(dqrelo_file{ std::move(file) }) : nullptr;
    });
}

void dqrelo_file_free(dqrelo_file * file) {
    delete file;
}

dqrelo_load_params dqrelo_load_default_params(void) {
    return { /*.allow_other_base_bytes =*/false,
             /*.verify =*/false,
             /*.use_mmap =*/false,
             /*.max_scale =*/DQRELO_MAX_SCALE,
             /*.decode_callback =*/nullptr,
             /*.decode_callback_data =*/nullptr };
}

dqrelo_delta * dqrelo_load_opened(const llama_model * model, const dqrelo_base * base, dqrelo_file * file, dqrelo_load_params params,
                                  char * err, size_t n_err) {
    const std::unique_ptr<dqrelo_file> owned(file);
    const std::string                  path = file->file->path();
    return made(path, err, n_err, [&](std::string & text) { return load(*model, *base->file, std::move(owned->file), params, text); });
}

dqrelo_delta * dqrelo_load(const llama_model * model, const char * path_model, const char * path, dqrelo_load_params params, char * err,
                           size_t n_err) {
    auto file_params     = dqrelo_file_default_params();
    file_params.verify   = params.verify;
    file_params.use_mmap = params.use_mmap;
    file_params.on_cpu   = dqrelo_on_cpu(model);
    dqrelo_file * file   = dqrelo_file_open(path, file_params, err, n_err);
    dqrelo_base * base   = file != nullptr ? dqrelo_base_open(path_model, err, n_err) : nullptr;
    if (base == nullptr) {
        dqrelo_file_free(file);
        return nullptr;
    }
    dqrelo_delta * delta = dqrelo_load_opened(model, base, file, params, err, n_err);
    dqrelo_base_free(base);
    return delta;
}

bool dqrelo_free(dqrelo_delta * delta) {
    if (delta && delta->n_bound > 0) {
        return false;
    }
    delete delta;
    return true;
}

void dqrelo_keep_memory(bool keep) {
    dqrelo::keep_copy_memory(keep);
}

size_t dqrelo_file_bytes_needed(const llama_model * model, const dqrelo_file * file) {
    std::string  err;
    dqrelo_delta delta;
    delta.file = file->file;
    if (!dqrelo::find_copies(delta, *model, err)) { // Its load will say why.
        return delta.file->n_bytes_mapped();
    }
    dqrelo::count_memory(delta);
    size_t n_bytes = 0;
    for (const auto & memory : delta.memory) {
        n_bytes += memory.second;
    }
    return n_bytes;
}
