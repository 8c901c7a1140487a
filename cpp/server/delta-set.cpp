#include "delta-set.h"

#include "delta-name-rules.h"
#include "file/utf8-path.h"
#include "server-http.h"
#include "server-queue.h"

#include <algorithm>
#include <filesystem>

static bool contains(const std::vector<std::string> & list, const std::string & item) {
    return std::find(list.begin(), list.end(), item) != list.end();
}

//
// start and end
//

bool server_delta_set::load(const common_params & params, llama_context * ctx, const std::string & model_name) {
    if (!settings && !open_resolver()) {
        return false;
    }
    const bool has_deltas = !params.dqrelo.deltas.empty() || !params.dqrelo.deltas_dir.empty() || resolver;
    host.model            = llama_get_model(ctx);
    const bool is_open    = !has_deltas || (open_base(params) && scan_graphs(ctx));
    if (settings) { // The server is back from a sleep.
        if (registry) {
            registry->wake(); // Without the base's file or the context's graphs, each load fails and says so.
        }
        return true;
    }
    if (!is_open) {
        return false;
    }
    settings    = std::make_unique<const server_delta_settings>(params);
    host.params = settings.get();
    n_slots     = llama_n_seq_max(ctx);
    base_names  = { model_name };
    base_names.insert(base_names.end(), params.model_alias.begin(), params.model_alias.end());
    base_names.push_back(dqrelo::utf8_text(dqrelo::utf8_path(params.model.path).filename()));
    if (!has_deltas && !params.dqrelo.blends.empty()) {
        SRV_ERR("--blend '%s': this server has no deltas. Give them with --delta, --deltas-dir or --load-from\n",
                params.dqrelo.blends[0].name.c_str());
        return false;
    }
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
    if (!load_first(first)) {
        return false;
    }
    log_table();
    return true;
}

// Takes over the process that fetches addresses, where dqrelo-server started one.
bool server_delta_set::open_resolver() {
    try {
        resolver = server_delta_resolver::inherited();
        return true;
    } catch (const std::invalid_argument & e) {
        SRV_ERR("%s\n", e.what());
        return false;
    }
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

// Finds out once what deltas can change in this context, so that each can be checked beside a step.
bool server_delta_set::scan_graphs(llama_context * ctx) {
    char       err[1024] = "";
    const bool is_known  = dqrelo_scan_graphs(ctx, err, sizeof(err));
    host.ctx             = is_known ? ctx : nullptr;
    if (!is_known) {
        SRV_ERR("deltas cannot be checked: %s\n", err);
    }
    return is_known;
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
    for (const auto & blend : options.blends) {
        try {
            add_blend(blend, "--blend '" + blend.name + "'");
        } catch (const std::invalid_argument & e) {
            SRV_ERR("%s\n", e.what());
            return false;
        }
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
        if (is_base_name(name) || blends.find(name) || !registry->found(name, stamp, contains(host.params->dqrelo.pinned, name))) {
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
    auto params        = server_delta_file_params(host);
    params.header_only = true;
    const server_delta_file_ptr file(dqrelo_file_open(path.c_str(), params, err, sizeof(err)));
    return file ? dqrelo_file_bytes_needed(host.model, file.get()) : 0;
}

bool server_delta_set::load_first(const std::vector<dqrelo_delta_source> & sources) {
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
        if (!load_one(source)) {
            return false;
        }
    }
    return true;
}

bool server_delta_set::load_one(const dqrelo_delta_source & source) {
    const int64_t         t_start    = ggml_time_us();
    char                  text[1024] = "";
    const auto            params     = server_delta_file_params(host);
    const auto            stamp      = server_delta_stamp::of(source.path);
    server_delta_file_ptr file(dqrelo_file_open(source.path.c_str(), params, text, sizeof(text)));
    std::string           err   = text;
    const auto            delta = file ? server_delta_make(source.name, std::move(file), host, registry->decoding(), err) : nullptr;
    if (!delta) {
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
    host.ctx = nullptr;
}

void server_delta_set::stop() const {
    if (registry) {
        registry->stop();
    }
    if (resolver) {
        resolver->stop();
    }
}

// Every position of a running sequence has a cell; what only waits to be used again can be overwritten, and counts as free.
void server_delta_set::note_busy(llama_context * ctx, const std::function<bool(int)> & is_busy) {
    const llama_memory_t memory  = llama_get_memory(ctx); // NULL is an encoder.
    double               n_cells = 0.0;
    bool                 is_any  = false;
    for (uint32_t seq_id = 0; seq_id < n_slots; seq_id++) {
        if (is_busy((int) seq_id)) {
            is_any = true;
            n_cells += memory != nullptr ? llama_memory_seq_pos_max(memory, (llama_seq_id) seq_id) + 1 : 0;
        }
    }
    registry->set_decoding(is_any);
    cache_usage = std::min(1.0, n_cells / llama_n_ctx(ctx));
}

void server_delta_set::update(llama_context * ctx, const std::function<bool(int)> & is_busy) {
    if (registry) {
        note_busy(ctx, is_busy);
    }
    if (!registry || !registry->has_work()) {
        return;
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

// Returns the name without the base's before it (--delta-names prefixed): "base:math" and "base_math" are "math". A name that the caller
// may use as it is stays; of several bases that fit, the longest counts. It tells no one which other names there are.
std::string server_delta_set::short_name(const server_delta_caller & caller, const std::string & name) {
    const bool is_known = is_base_name(name) || (is_allowed(caller, name) && (has_delta(name) || blends.find(name)));
    size_t     n_before = 0;
    for (const auto & base : base_names) {
        const bool is_before = name.size() > base.size() + 1 && name.compare(0, base.size(), base) == 0 &&
                               (name[base.size()] == ':' || name[base.size()] == '_');
        n_before             = is_before ? std::max(n_before, base.size() + 1) : n_before;
    }
    return is_known ? name : name.substr(n_before);
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
    for (const auto & blend : blends.all()) {
        if (may_use(caller, blend)) {
            names += (names.empty() ? "'" : ", '") + blend.name + "'";
        }
    }
    return names.empty() ? "no model for this API key" : names;
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
    // Adds a model like the base, and says by `key` what it is.
    const bool is_prefixed = host.params->dqrelo.names_are_prefixed;
    const auto add         = [&](const std::string & own_name, json root, const char * key, json value) {
        const std::string name = is_prefixed ? base_names[0] + "_" + own_name : own_name;

        json model       = base;
        model["id"]      = name;
        model["aliases"] = json::array();
        if (is_prefixed) {
            model["aliases"].push_back(own_name);
            model["aliases"].push_back(base_names[0] + ":" + own_name);
        }
        model["root"]   = std::move(root);
        model["parent"] = base_names[0];
        model[key]      = std::move(value);
        models["data"].push_back(std::move(model));

        json short_model                       = short_base;
        short_model["name"]                    = name;
        short_model["model"]                   = name;
        short_model["details"]["parent_model"] = base_names[0];
        models["models"].push_back(std::move(short_model));
    };
    for (const auto & row : registry->rows()) {
        const auto & entry = row.entry;
        if (!entry.is_draining && !entry.is_broken && is_allowed(caller, entry.name)) {
            add(entry.name, shown(caller, entry.path, entry.path), "delta",
                { { "content_hash", entry.hash.empty() ? json() : json(entry.hash) }, { "state", entry.state() } });
        }
    }
    for (const auto & blend : blends.all()) {
        if (may_use(caller, blend)) {
            add(blend.name, nullptr, "blend", server_delta_parts_json(blend.parts));
        }
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
        const bool   is_base  = !model.contains("delta") && !model.contains("blend");
        const json & aliases  = model.at("aliases");
        const bool   is_alias = std::any_of(aliases.begin(), aliases.end(), [&](const json & alias) { return alias == name; });
        if (is_base ? is_base_name(name) : is_alias || model.at("id") == name) {
            return model;
        }
    }
    throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' does not exist");
}
