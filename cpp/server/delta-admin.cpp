// The part of server_delta_set that answers its endpoints: what there is, and changes to it.
#include "delta-name-rules.h"
#include "delta-set.h"
#include "server-http.h"

#include <algorithm>
#include <filesystem>

// Throws unless the caller may change what this server serves.
void server_delta_set::check_admin(const server_delta_caller & caller) const {
    if (caller.is_limited()) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "this API key may use deltas, but not load or unload them");
    }
    if (!registry) {
        throw std::invalid_argument("this server has no deltas: start it with --delta, --deltas-dir or --load-from");
    }
    const auto & admin = host.params->dqrelo.admin;
    if (!admin.value_or(host.params->has_api_keys)) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, admin.has_value()
                                                            ? "deltas cannot be loaded and unloaded over HTTP here (--no-delta-admin)"
                                                            : "deltas are loaded and unloaded over HTTP only where an API key is asked for "
                                                              "(--api-key), or with --delta-admin");
    }
}

std::string server_delta_set::shown(const server_delta_caller & caller, std::string text, const std::string & path) const {
    if (!caller.is_limited()) {
        return text;
    }
    for (const std::string & dir : { std::filesystem::path(path).parent_path().string(), host.params->dqrelo.deltas_dir }) {
        if (!dir.empty()) {
            string_replace_all(text, dir.back() == '/' ? dir : dir + "/", "");
        }
    }
    return text;
}

json server_delta_set::row_json(const server_delta_caller & caller, const server_delta_registry::row & row) const {
    const auto & entry  = row.entry;
    json         memory = json::object();
    const auto   reason = entry.reason.empty() && entry.is_lost ? "its file is gone: the name goes when it leaves memory" : entry.reason;
    for (const auto & [name, n_bytes] : row.memory) {
        memory[name] = n_bytes;
    }
    return {
        { "name", entry.name },
        { "file", shown(caller, entry.path, entry.path) },
        { "content_hash", entry.hash.empty() ? json() : json(entry.hash) },
        { "generation", row.counts.n_loads }, // Outlives an unload, as all counts do.
        { "parent", base_names[0] },
        { "ratio", entry.hash.empty() ? json() : json(entry.ratio) },
        { "quality", entry.quality },
        { "bytes", entry.n_bytes },
        { "bytes_resident", row.n_resident },
        { "memory", memory },
        { "state", entry.state() },
        { "reason", reason.empty() ? json() : json(shown(caller, reason, entry.path)) },
        { "tensors_applied", entry.hash.empty() ? json() : json(entry.n_applied) },
        { "requests_running", row.n_running },
        { "requests_served", row.counts.n_requests - (uint64_t) std::min<uint64_t>(row.n_running, row.counts.n_requests) },
        { "last_used", entry.used_s == 0 ? json() : json(entry.used_s) },
        { "pinned", entry.is_pinned },
    };
}

json server_delta_set::blends_json(const server_delta_caller & caller) const {
    json list = json::array();
    for (const auto & blend : blends.all()) {
        if (may_use(caller, blend)) {
            list.push_back({ { "name", blend.name },
                             { "deltas", server_delta_parts_json(blend.parts) },
                             { "template", blend.parts[blend.lead].name } });
        }
    }
    return list;
}

json server_delta_set::list(const server_http_req & req) {
    if (registry) {
        look_for_files();
    }
    json   data  = json::array();
    size_t n_all = 0;
    for (const auto & row : registry ? registry->rows() : std::vector<server_delta_registry::row>()) {
        if (is_allowed(req.caller, row.entry.name)) {
            data.push_back(row_json(req.caller, row));
            n_all += row.n_resident;
        }
    }
    const size_t n_max = registry && !req.caller.is_limited() ? registry->limits.n_bytes_max : 0;
    return {
        { "object", "list" },
        { "data", data },
        { "bytes_resident", n_all },
        { "blends", blends_json(req.caller) },
        { "bytes_max", n_max == 0 ? json() : json(n_max) },
        { "requests_waiting", registry ? registry->n_waiting() : 0 },
    };
}

bool server_delta_set::is_loaded(const server_http_req & req, const std::string & name) const {
    check_admin(req.caller);
    return registry->is_loaded(name);
}

// Throws std::invalid_argument, in a line that begins with `what`, if the blend cannot be served.
void server_delta_set::add_blend(const dqrelo_blend & blend, const std::string & what) {
    if (const auto fault = server_delta_name_fault(blend.name); !fault.empty()) {
        throw std::invalid_argument(what + ": " + fault);
    }
    if (is_base_name(blend.name) || registry->has(blend.name)) {
        throw std::invalid_argument(what + ": " + (is_base_name(blend.name) ? "the base" : "a delta") +
                                    " has this name. Give the blend another one");
    }
    if (blend.parts.empty()) {
        throw std::invalid_argument(what + ": a blend has at least one delta");
    }
    dqrelo_check_blend(blend.parts, what, host.params->dqrelo.max_scale);
    for (const auto & part : blend.parts) {
        if (!has_delta(part.name)) {
            throw std::invalid_argument(what + ": there is no delta '" + part.name + "'; this server has " + names({ "", {} }));
        }
    }
    if (!blends.add(blend)) {
        throw std::invalid_argument(what + ": another blend has this name, or there are too many");
    }
}

json server_delta_set::admin_blend(const server_http_req & req, const std::string & name, std::vector<dqrelo_blend_part> parts,
                                   const std::string & lead) {
    check_admin(req.caller);
    dqrelo_blend blend;
    blend.name  = name;
    blend.parts = std::move(parts);
    if (!lead.empty()) {
        dqrelo_set_lead(blend, lead, "\"template\"");
    }
    add_blend(blend, "\"name\"");
    return { { "name", name }, { "deltas", server_delta_parts_json(blend.parts) }, { "template", blend.parts[blend.lead].name } };
}

// Throws std::invalid_argument unless a delta may have this name.
void server_delta_set::check_free(const std::string & name) const {
    if (const auto fault = server_delta_name_fault(name); !fault.empty()) {
        throw std::invalid_argument("\"name\": " + fault);
    }
    if (is_base_name(name)) {
        throw std::invalid_argument("the base model has the name '" + name + "'. Give the delta another one");
    }
    if (blends.find(name)) {
        throw std::invalid_argument("a blend has the name '" + name + "'. Give the delta another one, or unload the blend");
    }
}

// Returns the file that a load names; one at an address is fetched, which may take minutes.
server_delta_stamp server_delta_set::file_of(const server_delta_load & load, const server_should_stop & should_stop) const {
    if (load.address.empty()) {
        return folder->find(load.file.empty() ? load.name + ".dq.gguf" : load.file, should_stop);
    }
    server_delta_check_address(load.address);
    if (!resolver) {
        throw server_delta_error(ERROR_TYPE_PERMISSION,
                                 server_delta_shown_address(load.address) +
                                     ": addresses are not loaded here, which dqrelo-server --load-from allows. Put the "
                                     "file into --deltas-dir first (hf download, aws s3 cp, curl -O), and give its path there");
    }
    const auto fetched = resolver->resolve(load.address, should_stop);
    SRV_INF("delta '%s': loading %s, fetched as %s\n", load.name.c_str(), fetched.address.c_str(), fetched.path.c_str());
    return server_delta_look_at(fetched.path, should_stop);
}

json server_delta_set::admin_load(const server_http_req & req, const server_delta_load & load) {
    check_admin(req.caller);
    check_free(load.name);
    const bool  names_file = !load.file.empty() || !load.address.empty();
    std::string path       = names_file ? "" : registry->path_of(load.name);
    const bool  must_exist = (!names_file && load.is_reload) || !load.if_hash.empty();
    if (must_exist && !registry->has(load.name)) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + load.name + "' does not exist; this server has " + names(req.caller));
    }
    bool is_new = false;
    if (path.empty()) {
        const auto stamp = file_of(load, req.should_stop);
        check_free(load.name); // A blend may have come while the file was fetched.
        path   = stamp.path;
        is_new = load.if_hash.empty() && registry->add(load.name, path, stamp.n_bytes, load.is_pinned);
    }
    const auto check_file = [&] {
        if (!is_new && !load.is_reload && registry->is_loaded(load.name) && registry->path_of(load.name) != path) {
            throw std::invalid_argument("delta '" + load.name +
                                        "' is loaded from another file. Put a new file in its place with /deltas/reload");
        }
    };
    check_file();
    registry->load(load.name, path, load.is_reload, req.should_stop, load.if_hash);
    check_file(); // Another call for the same name may have been faster.
    if (load.is_pinned) {
        registry->pin(load.name);
    }
    for (const auto & row : registry->rows()) {
        if (row.entry.name == load.name) {
            return row_json(req.caller, row);
        }
    }
    throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + load.name + "' was unloaded");
}

void server_delta_set::admin_unload(const server_http_req & req, const std::string & name, const std::string & if_hash) {
    check_admin(req.caller);
    if (!if_hash.empty() && blends.find(name)) {
        throw std::invalid_argument("\"if_content_hash\": '" + name + "' is a blend, which has none");
    }
    if (!blends.remove(name)) {
        registry->unload(name, req.should_stop, if_hash);
    }
}

void server_delta_set::prepare(const server_http_req & req) {
    const dqrelo_blend blend = wanted(req, { { "model", req.get_param("model") } });
    if (!blend.parts.empty()) {
        hold(req, blend);
    }
}

static std::string text_of(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, token, true);
}

json server_delta_set::props(const server_http_req & req, json base) {
    const dqrelo_blend blend = wanted(req, { { "model", req.get_param("model") } });
    base["model_path"]       = shown(req.caller, host.params->model.path, host.params->model.path);
    if (blend.parts.empty()) {
        return base;
    }
    const auto           use   = hold(req, blend);
    const server_delta & delta = *use->holds[blend.lead]->delta;
    task_params          defaults;
    defaults.sampling                             = delta.sampling;
    base["default_generation_settings"]["params"] = defaults.to_json(true);
    base["model_alias"]                           = blend.name;
    base["model_path"]                            = shown(req.caller, delta.path, delta.path);
    base["chat_template"]                         = common_chat_templates_source(delta.chat.tmpls.get());
    base["chat_template_caps"]                    = common_chat_templates_get_caps(delta.chat.tmpls.get());
    base["bos_token"]                             = text_of(delta.vocab, delta.vocab.bos);
    base["eos_token"]                             = text_of(delta.vocab, delta.vocab.eos);
    base["delta"]                                 = { { "content_hash", delta.hash }, { "parent", base_names[0] } };
    if (blend.parts.size() > 1) {
        base["blend"] = server_delta_parts_json(blend.parts);
    }
    return base;
}
