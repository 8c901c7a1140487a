#include "delta-set.h"

#include "loaded-deltas.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

std::string server_delta_ref::key() const {
    if (delta == nullptr || scale == 0.0f) {
        return "";
    }
    return delta->hash + string_format("@%.9g", scale);  // 9 digits tell any two floats apart
}

//
// loading
//

bool server_delta_set::load(const common_params & params, llama_context * ctx, const std::string & model_name) {
    unknown_is_base = params.dqrelo.unknown_is_base;
    one_for_all     = params.dqrelo.one_for_all;
    base_path       = params.model.path;
    base_names      = { model_name };
    base_names.insert(base_names.end(), params.model_alias.begin(), params.model_alias.end());
    base_names.push_back(std::filesystem::path(params.model.path).filename().string());

    const bool is_first = entries.empty();
    for (size_t i = 0; i < params.dqrelo.deltas.size(); i++) {
        const auto &   source = params.dqrelo.deltas[i];
        dqrelo_delta * handle = dqrelo_load_logged(source, params, ctx);
        if (handle == nullptr) {
            return false;
        }
        if (is_first) {
            entries.push_back(std::make_unique<entry>());
        }
        // after a sleep the file may be another one
        entries[i]->delta = { source.name, source.path, dqrelo_content_hash(handle), handle,
                              dqrelo_eog_of(handle, llama_model_get_vocab(llama_get_model(ctx))) };
    }
    return check_names();
}

bool server_delta_set::check_names() const {
    for (const auto & entry : entries) {
        if (is_base_name(entry->delta.name)) {
            SRV_ERR("delta '%s': the base model has this name. Give the delta another one: --delta NAME=%s\n", entry->delta.name.c_str(),
                    entry->delta.path.c_str());
            return false;
        }
    }
    return true;
}

void server_delta_set::unload(llama_context * ctx) {
    if (ctx == nullptr) {
        return;
    }
    for (uint32_t seq_id = 0; !entries.empty() && seq_id < llama_n_seq_max(ctx); seq_id++) {
        server_delta_bind({}, ctx, (int) seq_id);
    }
    for (auto & entry : entries) {
        if (entry->delta.handle != nullptr && !dqrelo_free(entry->delta.handle)) {
            SRV_WRN("delta '%s': still bound, not freed\n", entry->delta.name.c_str());
        }
        entry->delta.handle = nullptr;
    }
}

//
// chat templates
//

// A template statement that makes a token variable the fine-tune's where it differs: templates are built with the base's vocabulary.
static std::string set_token(const dqrelo_delta * delta, const llama_vocab * vocab, const char * key, const char * variable, llama_token base_token) {
    const std::string text = dqrelo_token_text(delta, vocab, key);
    if (text.empty() || (base_token != LLAMA_TOKEN_NULL && text == common_token_to_piece(vocab, base_token, true))) {
        return "";
    }
    return string_format("{%%- set %s = %s -%%}", variable, json(text).dump().c_str());
}

bool server_delta_set::init_chat(const common_params & params, const llama_model * model, server_chat_params & chat_base) {
    if (entries.empty()) {
        return true;
    }
    chat_base.deltas          = this;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    for (auto & entry : entries) {
        const dqrelo_delta * handle = entry->delta.handle;
        const char *         tmpl   = dqrelo_chat_template(handle);
        const std::string    tokens = set_token(handle, vocab, "tokenizer.ggml.bos_token_id", "bos_token", llama_vocab_bos(vocab)) +
                                      set_token(handle, vocab, "tokenizer.ggml.eos_token_id", "eos_token", llama_vocab_eos(vocab));
        std::string          source = tmpl != nullptr ? tmpl : params.chat_template;
        if (source.empty() && !tokens.empty()) {
            source = common_chat_templates_source(chat_base.tmpls.get());
        }
        auto & chat = entry->chat;
        try {
            chat.tmpls = common_chat_templates_init(model, source.empty() ? source : tokens + source);
        } catch (const std::exception & e) {
            SRV_ERR("delta '%s': chat template: %s\n", entry->delta.name.c_str(), e.what());
            return false;
        }
        chat.use_jinja                = chat_base.use_jinja;
        chat.prefill_assistant        = chat_base.prefill_assistant;
        chat.reasoning_format         = chat_base.reasoning_format;
        chat.chat_template_kwargs     = chat_base.chat_template_kwargs;
        chat.allow_image              = chat_base.allow_image;
        chat.allow_audio              = chat_base.allow_audio;
        chat.allow_video              = chat_base.allow_video;
        chat.enable_thinking          = params.enable_reasoning != 0 && params.use_jinja &&
                                        common_chat_templates_support_enable_thinking(chat.tmpls.get());
        chat.reasoning_budget         = chat_base.reasoning_budget;
        chat.reasoning_budget_message = chat_base.reasoning_budget_message;
        chat.media_path               = chat_base.media_path;
        chat.force_pure_content       = chat_base.force_pure_content;
    }
    return true;
}

const server_chat_params & server_delta_set::chat_params(const json & body, const server_chat_params & chat_base) const {
    const server_delta_ref ref = find(body);
    return ref.delta == nullptr ? chat_base : find_entry(ref.delta->name)->chat;
}

//
// names
//

const server_delta_set::entry * server_delta_set::find_entry(const std::string & name) const {
    for (const auto & entry : entries) {
        if (entry->delta.name == name) {
            return entry.get();
        }
    }
    return nullptr;
}

bool server_delta_set::is_base_name(const std::string & name) const {
    return std::find(base_names.begin(), base_names.end(), name) != base_names.end();
}

std::string server_delta_set::names() const {
    std::string names = "'" + base_names[0] + "' (the base)";
    for (const auto & entry : entries) {
        names += ", '" + entry->delta.name + "'";
    }
    return names;
}

server_delta_ref server_delta_set::find(const json & body) const {
    server_delta_ref ref;
    if (entries.empty()) {
        return ref;
    }
    const bool        is_named = body.contains("model") && body.at("model").is_string();
    const std::string name     = is_named ? body.at("model").get<std::string>() : "";
    const entry *     found    = one_for_all ? entries[0].get() : find_entry(name);
    if (found == nullptr && !name.empty() && !is_base_name(name) && !unknown_is_base) {
        throw server_model_not_found("model '" + name + "' does not exist; this server has " + names());
    }
    ref.delta = found == nullptr ? nullptr : &found->delta;

    if (body.contains("delta_scale") && !body.at("delta_scale").is_null()) {
        const json & scale = body.at("delta_scale");
        if (!scale.is_number() || !std::isfinite(scale.get<float>())) {
            throw std::invalid_argument("\"delta_scale\" must be a finite number, got " + scale.dump());
        }
        if (ref.delta == nullptr) {
            throw std::invalid_argument("\"delta_scale\" scales a delta, but this request is for the base; this server has " + names());
        }
        ref.scale = scale.get<float>();
    }
    return ref;
}

json server_delta_set::list_models(json models) const {
    if (entries.empty()) {
        return models;
    }
    json & base    = models["data"][0];
    base["root"]   = base_path;
    base["parent"] = nullptr;
    for (const auto & entry : entries) {
        json model       = models["data"][0];
        model["id"]      = entry->delta.name;
        model["aliases"] = json::array();
        model["root"]    = entry->delta.path;
        model["parent"]  = base_names[0];
        model["delta"]   = { { "content_hash", entry->delta.hash } };
        models["data"].push_back(model);

        json short_model                       = models["models"][0];
        short_model["name"]                    = entry->delta.name;
        short_model["model"]                   = entry->delta.name;
        short_model["details"]["parent_model"] = base_names[0];
        models["models"].push_back(short_model);
    }
    return models;
}

//
// requests
//

void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task) {
    task.params.delta     = ref;
    task.tokens.delta_key = ref.key();
    if (ref.delta == nullptr) {
        return;
    }
    task.params.oaicompat_model = ref.delta->name;
    task.params.sampling.eog    = ref.delta->eog;
    if (task.params.sampling.ignore_eos && !ref.delta->eog.empty()) {
        dqrelo_ban_eog(task.params.sampling.logit_bias, vocab, ref.delta->eog);
    }
}

std::string server_delta_bind(const server_delta_ref & ref, llama_context * ctx, int id_slot) {
    const bool is_base   = ref.key().empty();
    char       err[1024] = "";
    if (dqrelo_bind(ctx, id_slot, is_base ? nullptr : ref.delta->handle, is_base ? 1.0f : ref.scale, err, sizeof(err))) {
        return "";
    }
    return string_format("delta '%s': %s", is_base ? "" : ref.delta->name.c_str(), err);
}

void server_delta_set::check_slot_file(const std::string & key, const std::string & model_name) const {
    const std::string hash  = key.substr(0, key.find('@'));
    const auto        owner = std::find_if(entries.begin(), entries.end(), [&](const auto & entry) { return entry->delta.hash == hash; });
    if (!key.empty() && owner == entries.end()) {
        throw std::runtime_error("the file was computed with a delta that is not loaded, content hash " + hash);
    }
    if (model_name.empty()) {
        return;
    }
    const entry * wanted = find_entry(model_name);
    if (wanted == nullptr && !is_base_name(model_name) && !unknown_is_base) {
        throw std::runtime_error("model '" + model_name + "' does not exist; this server has " + names());
    }
    if ((wanted == nullptr ? "" : wanted->delta.hash) != hash) {
        throw std::runtime_error("the file was computed by " + (key.empty() ? "the base" : "'" + (*owner)->delta.name + "'") + ", not by '" + model_name + "'");
    }
}
