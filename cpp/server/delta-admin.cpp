// The part of server_delta_set that answers its endpoints: what there is, and changes to it.
#include "delta-caller.h"
#include "delta-folder.h"
#include "delta-set.h"

#include <algorithm>
#include <filesystem>

static const size_t N_NAME_MAX = 200; // bytes

// A request may make any name known that reads well in a log, a URL and a list.
static void check_name(const std::string & name) {
    const bool is_odd = std::any_of(name.begin(), name.end(), [](unsigned char ch) {
        return ch < ' ' || ch == 127 || ch == '/' || ch == '\\' || ch == '"' || ch == '\'';
    });
    if (is_odd || name.size() > N_NAME_MAX) {
        throw std::invalid_argument(
            string_format("\"name\" must have at most %zu bytes, without slashes, quotes and control characters", N_NAME_MAX));
    }
}

// Throws unless the caller may change what this server serves.
void server_delta_set::check_admin() const {
    if (!registry) {
        throw std::invalid_argument("this server has no deltas: start it with --delta or --deltas-dir");
    }
    if (!host.params->dqrelo.admin) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "deltas cannot be loaded and unloaded over HTTP here (--no-delta-admin)");
    }
    if (is_limited()) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "this API key may use deltas, but not load or unload them");
    }
}

bool server_delta_set::is_limited() const {
    const auto caller = server_delta_caller::current();
    return caller != nullptr && host.params->dqrelo.keys.count(caller->api_key()) > 0;
}

std::string server_delta_set::shown(std::string text, const std::string & path) const {
    if (!is_limited()) {
        return text;
    }
    for (const std::string & folder : { std::filesystem::path(path).parent_path().string(), host.params->dqrelo.deltas_dir }) {
        if (!folder.empty()) {
            string_replace_all(text, folder.back() == '/' ? folder : folder + "/", "");
        }
    }
    return text;
}

bool server_delta_set::is_allowed(const std::string & name) const {
    const auto & keys   = host.params->dqrelo.keys;
    const auto   caller = server_delta_caller::current();
    const auto   names  = caller == nullptr ? keys.end() : keys.find(caller->api_key());
    if (names == keys.end()) {
        return true;
    }
    return std::any_of(names->second.begin(), names->second.end(),
                       [&](const std::string & allowed) { return name.empty() ? is_base_name(allowed) : allowed == name; });
}

json server_delta_set::row_json(const server_delta_registry::row & row) const {
    const auto & entry  = row.entry;
    json         memory = json::object();
    for (const auto & [name, n_bytes] : row.memory) {
        memory[name] = n_bytes;
    }
    return {
        { "name", entry.name },
        { "file", shown(entry.path, entry.path) },
        { "content_hash", entry.hash.empty() ? json() : json(entry.hash) },
        { "parent", base_names[0] },
        { "ratio", entry.hash.empty() ? json() : json(entry.ratio) },
        { "bytes", entry.n_bytes },
        { "bytes_resident", row.n_resident },
        { "memory", memory },
        { "state", entry.state() },
        { "reason", entry.reason.empty() ? json() : json(shown(entry.reason, entry.path)) },
        { "tensors_applied", entry.hash.empty() ? json() : json(entry.n_applied) },
        { "requests_running", row.n_running },
        { "requests_served", row.counts.n_requests - (uint64_t) std::min<uint64_t>(row.n_running, row.counts.n_requests) },
        { "last_used", entry.used_s == 0 ? json() : json(entry.used_s) },
        { "pinned", entry.is_pinned },
    };
}

json server_delta_set::list() const {
    json data = json::array();
    for (const auto & row : registry ? registry->rows() : std::vector<server_delta_registry::row>()) {
        if (is_allowed(row.entry.name)) {
            data.push_back(row_json(row));
        }
    }
    const size_t n_max = registry ? registry->limits.n_bytes_max : 0;
    return {
        { "object", "list" },
        { "data", data },
        { "bytes_resident", registry ? registry->n_resident() : 0 },
        { "bytes_max", n_max == 0 ? json() : json(n_max) },
    };
}

bool server_delta_set::is_loaded(const std::string & name) const {
    check_admin();
    return registry->is_loaded(name);
}

json server_delta_set::admin_load(const server_delta_load & load, const server_should_stop & should_stop) {
    check_admin();
    check_name(load.name);
    if (is_base_name(load.name)) {
        throw std::invalid_argument("the base model has the name '" + load.name + "'. Give the delta another one");
    }
    const auto & dir  = host.params->dqrelo.deltas_dir;
    std::string  path = load.file.empty() ? registry->path_of(load.name) : server_delta_folder_path(dir, load.file);
    if (path.empty()) {
        if (load.is_reload) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + load.name + "' does not exist; this server has " + names());
        }
        path = server_delta_folder_path(dir, load.name + ".dq.gguf");
    }
    const bool is_new = registry->add(load.name, path, load.is_pinned);
    if (!is_new && !load.is_reload && registry->is_loaded(load.name) && registry->path_of(load.name) != path) {
        throw std::invalid_argument("delta '" + load.name +
                                    "' is loaded from another file. Put a new file in its place with /deltas/reload");
    }
    registry->load(load.name, path, load.is_reload, should_stop);
    if (load.is_pinned) {
        registry->pin(load.name);
    }
    for (const auto & row : registry->rows()) {
        if (row.entry.name == load.name) {
            return row_json(row);
        }
    }
    throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + load.name + "' was unloaded");
}

void server_delta_set::admin_unload(const std::string & name, const server_should_stop & should_stop) {
    check_admin();
    registry->unload(name, should_stop);
}

void server_delta_set::prepare(const std::string & model_name) const {
    const std::string name = wanted_name({ { "model", model_name } });
    if (!name.empty()) {
        hold(name);
    }
}

json server_delta_set::props(const std::string & model_name, json base) const {
    const std::string name = wanted_name({ { "model", model_name } });
    if (name.empty()) {
        return base;
    }
    const auto           use   = hold(name);
    const server_delta & delta = *use->delta;
    task_params          defaults;
    defaults.sampling                             = delta.params.sampling;
    base["default_generation_settings"]["params"] = defaults.to_json(true);
    base["model_alias"]                           = name;
    base["model_path"]                            = shown(delta.path, delta.path);
    base["chat_template"]                         = common_chat_templates_source(delta.chat.tmpls.get());
    base["chat_template_caps"]                    = common_chat_templates_get_caps(delta.chat.tmpls.get());
    base["delta"]                                 = { { "content_hash", delta.hash }, { "parent", base_names[0] } };
    return base;
}
