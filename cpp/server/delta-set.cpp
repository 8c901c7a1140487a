#include "delta-set.h"

#include "delta-caller.h"
#include "delta-folder.h"
#include "server-queue.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

static bool contains(const std::vector<std::string> & list, const std::string & item) {
    return std::find(list.begin(), list.end(), item) != list.end();
}

//
// start and end
//

bool server_delta_set::load(const common_params & params, llama_context * ctx, const std::string & model_name) {
    if (params.dqrelo.deltas.empty() && params.dqrelo.deltas_dir.empty()) {
        return true;
    }
    host.params = &params;
    host.model  = llama_get_model(ctx);
    if (registry) {
        registry->wake();
        return true;
    }
    base_names = { model_name };
    base_names.insert(base_names.end(), params.model_alias.begin(), params.model_alias.end());
    base_names.push_back(std::filesystem::path(params.model.path).filename().string());

    server_delta_limits limits;
    limits.n_bytes_max  = params.dqrelo.n_bytes_max;
    limits.n_active_max = params.dqrelo.n_active_max;
    limits.bytes_needed = [this](const std::string & path) { return dqrelo_bytes_needed(host.model, path.c_str()); };
    registry            = std::make_shared<server_delta_registry>(std::move(limits));

    if (!add_all()) {
        return false;
    }
    // pinned ones first: they must fit
    std::vector<dqrelo_delta_source> first;
    for (const auto & row : registry->rows()) {
        if (row.entry.is_pinned) {
            first.push_back({ row.entry.name, row.entry.path });
        }
    }
    for (const auto & source : params.dqrelo.deltas) {
        if (!contains(params.dqrelo.pinned, source.name)) {
            first.push_back(source);
        }
    }
    if (!load_first(ctx, first)) {
        return false;
    }
    log_table();
    return true;
}

bool server_delta_set::add_all() {
    const auto & options = host.params->dqrelo;
    for (const auto & source : options.deltas) {
        if (is_base_name(source.name)) {
            SRV_ERR("delta '%s': the base model has this name. Give the delta another one: --delta NAME=%s\n", source.name.c_str(),
                    source.path.c_str());
            return false;
        }
        registry->add(source.name, source.path, contains(options.pinned, source.name));
    }
    if (!options.deltas_dir.empty() && !add_folder()) {
        return false;
    }
    for (const auto & name : options.pinned) {
        if (!registry->has(name)) {
            SRV_ERR("--delta-pin '%s': there is no such delta; this server has %s\n", name.c_str(), names().c_str());
            return false;
        }
    }
    return true;
}

bool server_delta_set::add_folder() {
    const auto & options = host.params->dqrelo;
    try {
        for (const auto & source : server_delta_folder_list(options.deltas_dir)) {
            if (is_base_name(source.name) || !registry->add(source.name, source.path, contains(options.pinned, source.name))) {
                SRV_WRN("--deltas-dir: '%s' is left out, its name '%s' is taken\n", source.path.c_str(), source.name.c_str());
            }
        }
    } catch (const std::invalid_argument & e) {
        SRV_ERR("%s\n", e.what());
        return false;
    }
    return true;
}

bool server_delta_set::load_first(llama_context * ctx, const std::vector<dqrelo_delta_source> & sources) {
    const size_t n_max = registry->limits.n_bytes_max;
    for (const auto & source : sources) {
        const size_t n_bytes   = registry->limits.bytes_needed(source.path);
        const bool   must_stay = contains(host.params->dqrelo.pinned, source.name);
        if (n_max > 0 && registry->n_resident() + n_bytes > n_max) {
            if (must_stay || n_bytes > n_max) {
                SRV_ERR("delta '%s': its %zu bytes do not fit: --delta-memory allows %zu, of which pinned deltas have %zu\n",
                        source.name.c_str(), n_bytes, n_max, must_stay ? registry->n_resident() : 0);
                return false;
            }
            SRV_WRN("delta '%s': its %zu bytes do not fit beside the others, it is loaded on first use\n", source.name.c_str(), n_bytes);
            continue;
        }
        if (!load_one(ctx, source)) {
            return false;
        }
    }
    return true;
}

bool server_delta_set::load_one(llama_context * ctx, const dqrelo_delta_source & source) {
    std::string err;
    const auto  delta = server_delta_read(source.name, source.path, host, host.params->dqrelo.verify, err);
    if (!delta || !dqrelo_check_applies(delta->handle, ctx, delta->applied, err)) {
        dqrelo_log_last_words(source.name, err);
        return false;
    }
    registry->put(delta);
    dqrelo_log_loaded(delta->name, delta->handle, delta->applied, delta->load_ms);
    return true;
}

bool server_delta_set::start(const llama_model * model, server_chat_params & chat_base, server_queue & queue) {
    if (!registry) {
        return true;
    }
    host.model       = model;
    host.chat_base   = &chat_base;
    chat_base.deltas = this;
    for (const auto & row : registry->rows()) {
        std::string err;
        if (row.entry.current && !server_delta_make_chat(*row.entry.current, host, err)) {
            dqrelo_log_last_words(row.entry.name, err);
            return false;
        }
    }
    const auto wake_main_loop = [&queue] {
        server_task task(SERVER_TASK_TYPE_NEXT_RESPONSE); // does nothing, but a step follows
        task.id = queue.get_new_id();
        queue.post(std::move(task));
    };
    registry->on_wait([&queue, wake_main_loop] {
        queue.wait_until_no_sleep();
        wake_main_loop(); // it has no task for a request that waits, and would think that it is idle
    });
    loader = std::make_unique<server_delta_loader>(registry, host, wake_main_loop);
    return true;
}

void server_delta_set::unload(llama_context * ctx) {
    if (!registry || ctx == nullptr) {
        return;
    }
    for (uint32_t seq_id = 0; seq_id < llama_n_seq_max(ctx); seq_id++) {
        server_delta_bind({}, ctx, (int) seq_id);
    }
    registry->sleep();
}

void server_delta_set::stop() const {
    if (registry) {
        registry->stop();
    }
}

void server_delta_set::update(llama_context * ctx, const std::function<bool(int)> & is_busy) {
    if (!registry || !registry->has_work()) {
        return;
    }
    if (const auto delta = registry->take_unchecked()) {
        std::string err;
        if (dqrelo_check_applies(delta->handle, ctx, delta->applied, err)) {
            dqrelo_log_loaded(delta->name, delta->handle, delta->applied, delta->load_ms);
        } else {
            SRV_ERR("delta '%s': %s\n", delta->name.c_str(), err.c_str());
        }
        registry->checked(delta, err);
    }
    for (const auto & delta : registry->retired()) {
        for (uint32_t seq_id = 0; seq_id < llama_n_seq_max(ctx); seq_id++) {
            if (dqrelo_bound(ctx, (int) seq_id) == delta->handle && !is_busy((int) seq_id)) {
                server_delta_bind({}, ctx, (int) seq_id);
            }
        }
        if (dqrelo_n_bound(delta->handle) == 0) {
            registry->unbound(delta);
        }
    }
}

//
// names
//

bool server_delta_set::is_base_name(const std::string & name) const {
    return contains(base_names, name);
}

std::string server_delta_set::names() const {
    std::string names = "'" + base_names[0] + "' (the base)";
    for (const auto & row : registry->rows()) {
        names += row.entry.is_draining || !is_allowed(row.entry.name) ? "" : ", '" + row.entry.name + "'";
    }
    return names;
}

// The delta that a request is for, or an empty name for the base.
std::string server_delta_set::wanted_name(const json & body) const {
    if (!registry) {
        return "";
    }
    if (host.params->dqrelo.one_for_all) {
        return host.params->dqrelo.deltas[0].name;
    }
    const bool        is_named = body.contains("model") && body.at("model").is_string();
    const std::string name     = is_named ? body.at("model").get<std::string>() : "";
    const bool        is_known = registry->has(name);
    if (!is_known && !name.empty() && !is_base_name(name) && !host.params->dqrelo.unknown_is_base) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' does not exist; this server has " + names());
    }
    if (!is_allowed(is_known ? name : "")) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "this API key may not use the model '" + (is_known ? name : base_names[0]) + "'");
    }
    return is_known ? name : "";
}

std::shared_ptr<const server_delta_use> server_delta_set::hold(const std::string & name) const {
    server_delta_caller * caller = server_delta_caller::current();
    if (caller == nullptr) {
        return registry->acquire(name, nullptr);
    }
    if (!caller->use || caller->use->delta->name != name) {
        try {
            caller->use = registry->acquire(name, caller->req.should_stop);
        } catch (const server_delta_error & e) {
            throw server_delta_error(e.type, shown(e.what(), registry->path_of(name)));
        }
    }
    return caller->use;
}

server_delta_ref server_delta_set::find(const json & body) const {
    server_delta_ref  ref;
    const std::string name = wanted_name(body);
    if (registry && body.contains("delta_scale") && !body.at("delta_scale").is_null()) {
        const json & scale = body.at("delta_scale");
        if (!scale.is_number() || !std::isfinite(scale.get<float>())) {
            throw std::invalid_argument("\"delta_scale\" must be a finite number, got " + scale.dump());
        }
        if (name.empty()) {
            throw std::invalid_argument("\"delta_scale\" scales a delta, but this request is for the base; this server has " + names());
        }
        ref.scale = scale.get<float>();
    }
    if (!name.empty()) {
        ref.use = hold(name);
        registry->count_request(*ref.delta());
    }
    return ref;
}

std::shared_ptr<const server_chat_params> server_delta_set::chat_params(const json & body, const server_chat_params & chat_base) const {
    const std::string name = wanted_name(body);
    if (name.empty()) {
        return { std::shared_ptr<void>(), &chat_base }; // it outlives every request
    }
    const auto use = hold(name);
    return { use, &use->delta->chat };
}

json server_delta_set::list_models(json models) const {
    json & base    = models["data"][0];
    base["root"]   = shown(host.params->model.path, host.params->model.path);
    base["parent"] = nullptr;
    for (const auto & row : registry->rows()) {
        const auto & entry = row.entry;
        if (entry.is_draining || entry.is_broken || !is_allowed(entry.name)) {
            continue;
        }
        json model       = models["data"][0];
        model["id"]      = entry.name;
        model["aliases"] = json::array();
        model["root"]    = shown(entry.path, entry.path);
        model["parent"]  = base_names[0];
        model["delta"]   = { { "content_hash", entry.hash.empty() ? json() : json(entry.hash) }, { "state", entry.state() } };
        models["data"].push_back(model);

        json short_model                       = models["models"][0];
        short_model["name"]                    = entry.name;
        short_model["model"]                   = entry.name;
        short_model["details"]["parent_model"] = base_names[0];
        models["models"].push_back(short_model);
    }
    return models;
}

void server_delta_set::check_slot_file(const std::string & key, const std::string & model_name) const {
    const std::string hash = key.substr(0, key.find('@'));
    std::string       owner, wanted;
    bool              is_known = is_base_name(model_name) || model_name.empty();
    for (const auto & row : registry ? registry->rows() : std::vector<server_delta_registry::row>()) {
        owner    = row.entry.hash == hash ? row.entry.name : owner;
        wanted   = row.entry.name == model_name ? row.entry.hash : wanted;
        is_known = is_known || row.entry.name == model_name;
    }
    if (!hash.empty() && owner.empty()) {
        throw std::runtime_error("the file was computed with a delta that is not loaded, content hash " + hash);
    }
    if (!registry || model_name.empty()) {
        return;
    }
    if (!is_known && !host.params->dqrelo.unknown_is_base) {
        throw std::runtime_error("model '" + model_name + "' does not exist; this server has " + names());
    }
    if (wanted != hash) {
        throw std::runtime_error("the file was computed by " + (hash.empty() ? "the base" : "'" + owner + "'") + ", not by '" + model_name +
                                 "'");
    }
}

//
// requests
//

server_delta * server_delta_ref::delta() const {
    return use ? use->delta.get() : nullptr;
}

std::string server_delta_ref::key() const {
    if (!use || scale == 0.0f) {
        return "";
    }
    return delta()->hash + string_format("@%.9g", scale); // 9 digits tell any two floats apart
}

void server_delta_ref::done(uint64_t n_prompt, uint64_t n_generated) const {
    if (use) {
        use->count(n_prompt, n_generated);
        use.reset();
    }
}

void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task) {
    task.params.delta          = ref;
    task.tokens.delta_key      = ref.key();
    const server_delta * delta = ref.delta();
    if (delta == nullptr) {
        return;
    }
    task.params.oaicompat_model = delta->name;
    task.params.sampling.eog    = delta->eog;
    if (task.params.sampling.ignore_eos && !delta->eog.empty()) {
        dqrelo_ban_eog(task.params.sampling.logit_bias, vocab, delta->eog);
    }
}

const common_params & server_delta_params(const server_delta_ref & ref, const common_params & base) {
    return ref.use ? ref.delta()->params : base;
}

std::string server_delta_bind(const server_delta_ref & ref, llama_context * ctx, int id_slot) {
    const bool     is_base   = ref.key().empty();
    server_delta * delta     = is_base ? nullptr : ref.delta();
    char           err[1024] = "";
    if (delta != nullptr && delta->handle == nullptr) {
        return "delta '" + delta->name + "': the server went to sleep before the request ran. Send it again";
    }
    if (dqrelo_bind(ctx, id_slot, is_base ? nullptr : delta->handle, is_base ? 1.0f : ref.scale, err, sizeof(err))) {
        return "";
    }
    return string_format("delta '%s': %s", is_base ? "" : delta->name.c_str(), err);
}

bool server_delta_can_batch(const server_delta_ref & a, const server_delta_ref & b, const llama_context * ctx) {
    if (a.key() == b.key() || llama_get_memory(ctx) != nullptr) {
        return true; // llama_decode splits the batch itself
    }
    const auto needs_own = [ctx](const server_delta_ref & ref) {
        return ref.delta() != nullptr && dqrelo_needs_own_batch(ctx, ref.delta()->handle);
    };
    return !needs_own(a) && !needs_own(b);
}
