#include "delta-set.h"

#include "delta-name-rules.h"
#include "file/utf8-path.h"
#include "server-http.h"
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
    const bool has_deltas = !params.dqrelo.deltas.empty() || !params.dqrelo.deltas_dir.empty();
    host.model            = llama_get_model(ctx);
    const bool is_open    = !has_deltas || open_base(params);
    if (settings) { // The server is back from a sleep.
        if (registry) {
            registry->wake(); // Without the base's file, each load fails and says so.
        }
        return true;
    }
    if (!is_open) {
        return false;
    }
    settings    = std::make_unique<const server_delta_settings>(params);
    host.params = settings.get();
    base_names  = { model_name };
    base_names.insert(base_names.end(), params.model_alias.begin(), params.model_alias.end());
    base_names.push_back(dqrelo::utf8_text(dqrelo::utf8_path(params.model.path).filename()));
    if (!has_deltas) {
        return true;
    }

    server_delta_limits limits;
    limits.n_bytes_max   = params.dqrelo.n_bytes_max;
    limits.n_active_max  = params.dqrelo.n_active_max;
    limits.n_waiting_max = params.dqrelo.n_waiting_max;
    registry             = std::make_shared<server_delta_registry>(limits);
    folder               = std::make_unique<server_delta_folder>(params.dqrelo.deltas_dir);

    if (!add_all()) {
        return false;
    }
    // Pinned ones come first, because they must fit.
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

// The model's file is identified once, when the model is loaded: what lies under its path later is another one's.
bool server_delta_set::open_base(const common_params & params) {
    char err[1024] = "";
    host.base.reset(dqrelo_base_open(params.model.path.c_str(), err, sizeof(err)));
    if (!host.base) {
        dqrelo_log_last_words(params.model.path, err);
    }
    return host.base != nullptr;
}

bool server_delta_set::add_all() {
    const auto & options = host.params->dqrelo;
    for (const auto & source : options.deltas) {
        if (const auto fault = server_delta_name_fault(source.name); !fault.empty()) {
            SRV_ERR("delta %s: %s. Give it another one: --delta NAME=PATH\n", safe_json_to_str(source.name).c_str(), fault.c_str());
            return false;
        }
        if (is_base_name(source.name)) {
            SRV_ERR("delta '%s': the base model has this name. Give the delta another one: --delta NAME=%s\n", source.name.c_str(),
                    source.path.c_str());
            return false;
        }
        registry->add(source.name, source.path, server_delta_stamp::of(source.path).n_bytes, contains(options.pinned, source.name));
    }
    try {
        take_in_files();
    } catch (const std::invalid_argument & e) {
        SRV_ERR("%s\n", e.what());
        return false;
    }
    for (const auto & name : options.pinned) {
        if (!registry->has(name)) {
            SRV_ERR("--delta-pin '%s': there is no such delta; this server has %s\n", name.c_str(), names({ "", {} }).c_str());
            return false;
        }
    }
    return true;
}

// Makes known which files came, went, and changed since the last call.
void server_delta_set::take_in_files() {
    const auto sighting = folder->look(registry->broken());
    for (const auto & [name, stamp] : sighting.added) {
        if (is_base_name(name) || !registry->found(name, stamp, contains(host.params->dqrelo.pinned, name))) {
            SRV_WRN("--deltas-dir: '%s' is left out, its name '%s' is taken\n", stamp.path.c_str(), name.c_str());
        }
    }
    registry->lost(sighting.gone);
    registry->changed(sighting.changed);
}

// Before a request is told what there is, and what not.
void server_delta_set::look_for_files() {
    try {
        take_in_files();
    } catch (const std::invalid_argument & e) {
        SRV_WRN("%s\n", e.what());
    }
}

// Returns what the file will take once it is loaded; 0 for one that cannot be read, which its load then says.
static size_t bytes_needed(const std::string & path, const server_delta_host & host) {
    char err[1024]     = "";
    auto params        = server_delta_file_params(*host.params);
    params.header_only = true;
    const server_delta_file_ptr file(dqrelo_file_open(path.c_str(), params, err, sizeof(err)));
    return file ? dqrelo_file_bytes_needed(host.model, file.get()) : 0;
}

bool server_delta_set::load_first(llama_context * ctx, const std::vector<dqrelo_delta_source> & sources) {
    const size_t n_max = registry->limits.n_bytes_max;
    for (const auto & source : sources) {
        const size_t n_bytes   = n_max > 0 ? bytes_needed(source.path, host) : 0;
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
    const int64_t         t_start    = ggml_time_us();
    char                  text[1024] = "";
    const auto            params     = server_delta_file_params(*host.params);
    const auto            stamp      = server_delta_stamp::of(source.path);
    server_delta_file_ptr file(dqrelo_file_open(source.path.c_str(), params, text, sizeof(text)));
    std::string           err   = text;
    const auto            delta = file ? server_delta_make(source.name, std::move(file), host, err) : nullptr;
    if (!delta || !dqrelo_check_applies(delta->handle, ctx, delta->applied, err)) {
        dqrelo_log_last_words(source.name, err);
        return false;
    }
    delta->stamp   = stamp;
    delta->load_ms = (ggml_time_us() - t_start) / 1000.0;
    registry->put(delta);
    dqrelo_log_loaded(delta->name, delta->handle, delta->applied, delta->load_ms);
    return true;
}

bool server_delta_set::start(const llama_model * model, const server_chat_params & chat_base, server_queue & queue) {
    if (!registry) {
        return true;
    }
    host.model     = model;
    host.chat_base = &chat_base;
    for (const auto & row : registry->rows()) {
        std::string err;
        if (row.entry.current && !server_delta_make_chat(*row.entry.current, host, err)) {
            dqrelo_log_last_words(row.entry.name, err);
            return false;
        }
    }
    const auto wake_main_loop = [&queue] {
        server_task task(SERVER_TASK_TYPE_NEXT_RESPONSE); // Does nothing, but a step follows it.
        task.id = queue.get_new_id();
        queue.post(std::move(task));
    };
    loader = std::make_unique<server_delta_loader>(registry, host, wake_main_loop);
    watch  = std::make_unique<server_delta_watch>(registry, [&queue, wake_main_loop] {
        queue.wait_until_no_sleep();
        wake_main_loop();
    });
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
            bool is_bound = false;
            for (int32_t i = 0; const dqrelo_delta * part = dqrelo_bound(ctx, (int) seq_id, i); i++) {
                is_bound = is_bound || part == delta->handle;
            }
            if (is_bound && !is_busy((int) seq_id)) {
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

bool server_delta_set::is_allowed(const server_delta_caller & caller, const std::string & name) const {
    const auto & allowed = caller.names();
    return !caller.is_limited() || std::any_of(allowed.begin(), allowed.end(),
                                               [&](const std::string & own) { return name.empty() ? is_base_name(own) : own == name; });
}

std::string server_delta_set::names(const server_delta_caller & caller) const {
    std::string names = is_allowed(caller, "") ? "'" + base_names[0] + "' (the base)" : "";
    for (const auto & row : registry->rows()) {
        if (!row.entry.is_draining && is_allowed(caller, row.entry.name)) {
            names += (names.empty() ? "'" : ", '") + row.entry.name + "'";
        }
    }
    return names.empty() ? "no model for this API key" : names;
}

// "model" of a body, empty where it has none.
static std::string model_of(const json & body) {
    if (!body.is_object() || !body.contains("model") || body.at("model").is_null()) {
        return "";
    }
    if (!body.at("model").is_string()) {
        throw std::invalid_argument("\"model\" must be a string, got " + safe_json_to_str(body.at("model")).substr(0, 100));
    }
    return body.at("model").get<std::string>();
}

std::string server_delta_set::wanted_name(const server_http_req & req, const json & body) {
    const auto & options = host.params->dqrelo;
    if (registry && options.one_for_all) {
        return options.deltas[0].name;
    }
    const std::string name     = registry ? model_of(body) : ""; // Without deltas any name is the base.
    const bool        is_delta = !name.empty() && !is_base_name(name);
    if (is_delta && is_allowed(req.caller, name)) {
        if (!registry->has(name) || registry->is_broken(name)) {
            look_for_files();
        }
        if (registry->has(name)) {
            return name;
        }
    }
    // For a limited key, a name that it may not use is as unknown as one that nobody has.
    if (is_delta && !options.unknown_is_base) {
        const bool is_closed = !is_allowed(req.caller, name);
        throw server_delta_error(is_closed ? ERROR_TYPE_PERMISSION : ERROR_TYPE_NOT_FOUND,
                                 (is_closed ? "this API key may not use the model '" + name + "'; it has "
                                            : "model '" + name + "' does not exist; this server has ") +
                                     names(req.caller));
    }
    if (!is_allowed(req.caller, "")) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "this API key may not use the base model");
    }
    return "";
}

std::shared_ptr<const server_delta_use> server_delta_set::hold(const server_http_req & req, const std::string & name) const {
    if (!req.delta || req.delta->delta->name != name) {
        try {
            req.delta = registry->acquire(name, req.should_stop);
        } catch (const server_delta_error & e) {
            throw server_delta_error(e.type, shown(req.caller, e.what(), registry->path_of(name)), e.retry_after_s);
        }
    }
    return req.delta;
}

server_delta_ref server_delta_set::find(const server_http_req & req, const json & body) {
    server_delta_ref  ref;
    const std::string name = wanted_name(req, body);
    if (registry && body.contains("delta_scale") && !body.at("delta_scale").is_null()) {
        const json & scale = body.at("delta_scale");
        const float  max   = host.params->dqrelo.max_scale;
        if (!scale.is_number() || !(std::fabs(scale.get<double>()) <= max)) {
            throw std::invalid_argument(string_format("\"delta_scale\" must be a number from %g to %g (--delta-max-scale), got %s", -max,
                                                      max, scale.dump().substr(0, 40).c_str()));
        }
        if (name.empty()) {
            throw std::invalid_argument("\"delta_scale\" scales a delta, but this request is for the base; this server has " +
                                        names(req.caller));
        }
        ref.scale = scale.get<float>();
    }
    if (!name.empty()) {
        ref.use = hold(req, name);
        // The tasks hold it from here on, and let it go when they end: the client may read the answer for longer.
        req.delta.reset();
        registry->count_request(*ref.delta());
    }
    return ref;
}

std::shared_ptr<const server_chat_params> server_delta_set::chat_params(const server_http_req & req, const json & body,
                                                                        const server_chat_params & chat_base) {
    const std::string name = wanted_name(req, body);
    if (name.empty()) {
        return { std::shared_ptr<void>(), &chat_base }; // Outlives every request.
    }
    const auto use = hold(req, name);
    return { use, &use->delta->chat };
}

server_delta_vocab server_delta_set::vocab(const server_http_req & req, const json & body, const llama_vocab * base) {
    const std::string name = wanted_name(req, body);
    return name.empty() ? server_delta_vocab(base) : hold(req, name)->delta->vocab;
}

json server_delta_set::list_models(const server_delta_caller & caller, json models) {
    if (!registry && !caller.is_limited()) {
        return models;
    }
    json base       = models["data"][0];
    json short_base = models["models"][0];
    if (!is_allowed(caller, "")) {
        models["data"]   = json::array();
        models["models"] = json::array();
    } else if (registry) {
        models["data"][0]["root"]   = shown(caller, host.params->model.path, host.params->model.path);
        models["data"][0]["parent"] = nullptr;
    }
    if (!registry) {
        return models;
    }
    look_for_files();
    for (const auto & row : registry->rows()) {
        const auto & entry = row.entry;
        if (entry.is_draining || entry.is_broken || !is_allowed(caller, entry.name)) {
            continue;
        }
        json model       = base;
        model["id"]      = entry.name;
        model["aliases"] = json::array();
        model["root"]    = shown(caller, entry.path, entry.path);
        model["parent"]  = base_names[0];
        model["delta"]   = { { "content_hash", entry.hash.empty() ? json() : json(entry.hash) }, { "state", entry.state() } };
        models["data"].push_back(model);

        json short_model                       = short_base;
        short_model["name"]                    = entry.name;
        short_model["model"]                   = entry.name;
        short_model["details"]["parent_model"] = base_names[0];
        models["models"].push_back(short_model);
    }
    return models;
}

json server_delta_set::models(const server_http_req & req, const json & models) {
    static const std::string BEFORE = "/v1/models/";
    const size_t             before = req.path.find(BEFORE);
    json                     listed = list_models(req.caller, models);
    if (before == std::string::npos) {
        return listed;
    }
    const std::string name = req.path.substr(before + BEFORE.size());
    for (json & model : listed["data"]) {
        const bool is_base = !model.contains("delta");
        if (is_base ? is_base_name(name) : model.at("id") == name) {
            return model;
        }
    }
    throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' does not exist");
}

std::string server_delta_set::slot_model(const server_http_req & req, const json & body) {
    wanted_name(req, body);
    return registry ? model_of(body) : "";
}

void server_delta_set::check_slot_file(const std::string & key, const std::string & model_name) const {
    const std::string hash = key.substr(0, key.find('@'));
    std::string       owner, wanted;
    for (const auto & row : registry ? registry->rows() : std::vector<server_delta_registry::row>()) {
        owner  = row.entry.hash == hash ? row.entry.name : owner;
        wanted = row.entry.name == model_name ? row.entry.hash : wanted;
    }
    if (!hash.empty() && owner.empty()) {
        throw std::runtime_error("the file was computed with a delta that is not loaded, content hash " + hash);
    }
    if (!model_name.empty() && wanted != hash) {
        throw std::runtime_error("the file was computed by " + (hash.empty() ? "the base" : "'" + owner + "'") + ", not by '" + model_name +
                                 "'");
    }
}
