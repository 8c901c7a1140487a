// The part of server_delta_set that finds what a request asked for, and gives it that.
#include "delta-set.h"
#include "server-http.h"

#include <algorithm>
#include <cmath>

// Returns a field of a body, or null.
static json field_of(const json & body, const char * key) {
    return body.is_object() && body.contains(key) ? body.at(key) : json();
}

// "model" of a body, empty where it has none.
static std::string model_of(const json & body) {
    const json model = field_of(body, "model");
    if (model.is_null()) {
        return "";
    }
    if (!model.is_string()) {
        throw std::invalid_argument("\"model\" must be a string, got " + safe_json_to_str(model).substr(0, 100));
    }
    return model.get<std::string>();
}

bool server_delta_set::has_delta(const std::string & name) {
    if (!registry->has(name) || registry->is_broken(name)) {
        look_for_files();
    }
    return registry->has(name);
}

bool server_delta_set::may_use(const server_delta_caller & caller, const dqrelo_blend & blend) const {
    return std::all_of(blend.parts.begin(), blend.parts.end(), [&](const auto & part) { return is_allowed(caller, part.name); });
}

// For a limited key, a name that it may not use is as unknown as one that nobody has.
void server_delta_set::refuse_name(const server_delta_caller & caller, const std::string & name) const {
    const auto blend     = blends.find(name);
    const bool is_closed = !is_allowed(caller, name) || (blend && !may_use(caller, *blend));
    throw server_delta_error(is_closed ? ERROR_TYPE_PERMISSION : ERROR_TYPE_NOT_FOUND,
                             (is_closed ? "this API key may not use the model '" + name + "'; it has "
                                        : "model '" + name + "' does not exist; this server has ") +
                                 names(caller));
}

// Every part must be there and allowed: a blend of which some are left out would be another model. Nothing is said of a part that exists
// before it is known that the caller may use it.
void server_delta_set::check_parts(const server_delta_caller & caller, const dqrelo_blend & blend) {
    for (const auto & part : blend.parts) {
        if (!is_allowed(caller, part.name) || !has_delta(part.name)) {
            refuse_name(caller, part.name);
        }
    }
}

// Returns the blend that a "model" is a name of, or the text of.
std::optional<dqrelo_blend> server_delta_set::blend_of(const server_delta_caller & caller, const std::string & model) const {
    const auto named = blends.find(model);
    if (named) {
        return may_use(caller, *named) ? named : std::nullopt;
    }
    if (model.find('*') == std::string::npos) {
        return std::nullopt;
    }
    dqrelo_blend blend;
    blend.name  = model;
    blend.parts = dqrelo_parse_blend(model, "\"model\"", host.params->dqrelo.max_scale);
    return blend;
}

dqrelo_blend server_delta_set::wanted(const server_http_req & req, const json & body) {
    const auto & options = host.params->dqrelo;
    dqrelo_blend blend; // Without parts it is the base.
    if (registry && options.one_for_all) {
        blend.name  = options.deltas[0].name;
        blend.parts = { { blend.name, 1.0f } };
        return blend;
    }
    const json list = field_of(body, "deltas");
    if (!list.is_null() && !(list.is_array() && list.empty())) {
        if (!registry) {
            throw std::invalid_argument("\"deltas\": this server has no deltas: start it with --delta or --deltas-dir");
        }
        blend.parts = server_delta_parts_of(list, options.max_scale);
        blend.name  = dqrelo_blend_text(blend.parts);
        check_parts(req.caller, blend);
        return blend;
    }
    const std::string model    = registry && list.is_null() ? model_of(body) : ""; // Without deltas any name is the base.
    const std::string name     = options.names_are_prefixed && !model.empty() ? short_name(req.caller, model) : model;
    const bool        is_delta = !name.empty() && !is_base_name(name);
    if (is_delta && is_allowed(req.caller, name) && has_delta(name)) {
        blend.name  = name;
        blend.parts = { { name, 1.0f } };
        return blend;
    }
    if (const auto found = is_delta ? blend_of(req.caller, name) : std::nullopt) {
        check_parts(req.caller, *found);
        return *found;
    }
    if (is_delta && !options.unknown_is_base) {
        refuse_name(req.caller, name);
    }
    if (!is_allowed(req.caller, "")) {
        throw server_delta_error(ERROR_TYPE_PERMISSION, "this API key may not use the base model");
    }
    return blend;
}

std::string server_delta_set::wanted_name(const server_http_req & req, const json & body) {
    return wanted(req, body).name;
}

std::shared_ptr<const server_delta_use> server_delta_set::hold(const server_http_req & req, const dqrelo_blend & blend) const {
    std::vector<std::string> parts;
    for (const auto & part : blend.parts) {
        parts.push_back(part.name);
    }
    const auto is_part = [](const auto & hold, const std::string & name) { return hold->delta->name == name; };
    if (!req.delta || !std::equal(req.delta->holds.begin(), req.delta->holds.end(), parts.begin(), parts.end(), is_part)) {
        req.delta.reset(); // What it holds could be what other blends wait for.
        try {
            req.delta = registry->acquire_all(parts, req.should_stop);
        } catch (const server_delta_error & e) {
            std::string text = e.what();
            for (const auto & name : parts) {
                text = shown(req.caller, text, registry->path_of(name));
            }
            throw server_delta_error(e.type, text, e.retry_after_s);
        }
    }
    return req.delta;
}

// Returns "delta_scale", which multiplies all parts.
float server_delta_set::scale_of(const server_http_req & req, const json & body, const dqrelo_blend & blend) const {
    const json scale = field_of(body, "delta_scale");
    if (!registry || scale.is_null()) {
        return 1.0f;
    }
    const float max = host.params->dqrelo.max_scale;
    if (!scale.is_number() || !(std::fabs(scale.get<double>()) <= max)) {
        throw std::invalid_argument(string_format("\"delta_scale\" must be a number from %g to %g (--delta-max-scale), got %s", -max, max,
                                                  scale.dump().substr(0, 40).c_str()));
    }
    if (blend.parts.empty()) {
        throw std::invalid_argument("\"delta_scale\" scales a delta, but this request is for the base; this server has " +
                                    names(req.caller));
    }
    return scale.get<float>();
}

server_delta_ref server_delta_set::find(const server_http_req & req, const json & body) {
    server_delta_ref ref;
    dqrelo_blend     blend = wanted(req, body);
    const float      scale = scale_of(req, body, blend);
    if (blend.parts.empty()) {
        return ref;
    }
    for (auto & part : blend.parts) {
        part.scale *= scale;
        ref.scales.push_back(part.scale);
    }
    dqrelo_check_blend(blend.parts, "\"delta_scale\" times the scales of the blend", host.params->dqrelo.max_scale);
    ref.name = blend.name;
    ref.lead = blend.lead;
    ref.use  = hold(req, blend);
    // The tasks hold it from here on, and let it go when they end: the client may read the answer for longer.
    req.delta.reset();
    for (const auto & hold : ref.use->holds) {
        registry->count_request(*hold->delta);
    }
    return ref;
}

std::shared_ptr<const server_chat_params> server_delta_set::chat_params(const server_http_req & req, const json & body,
                                                                        const server_chat_params & chat_base) {
    const dqrelo_blend blend = wanted(req, body);
    if (blend.parts.empty()) {
        return { std::shared_ptr<void>(), &chat_base }; // Outlives every request.
    }
    const auto use = hold(req, blend);
    return { use, &use->holds[blend.lead]->delta->chat };
}

server_delta_vocab server_delta_set::vocab(const server_http_req & req, const json & body, const llama_vocab * base) {
    const dqrelo_blend blend = wanted(req, body);
    return blend.parts.empty() ? server_delta_vocab(base) : hold(req, blend)->holds[blend.lead]->delta->vocab;
}

//
// slot files
//

// Names have no line breaks, so they can stand between the parts. The base is a part like others: its hash is empty.
std::string server_delta_set::slot_model(const server_http_req & req, const json & body) {
    std::string parts;
    for (const auto & part : wanted(req, body).parts) {
        parts += part.scale == 0.0f ? "" : (parts.empty() ? "" : "\n") + part.name;
    }
    const bool is_named = registry && (!model_of(body).empty() || !field_of(body, "deltas").is_null());
    return is_named && parts.empty() ? base_names[0] : parts;
}

void server_delta_set::check_slot_file(const std::string & key, const std::string & parts) const {
    std::vector<std::string> owners, wanted, hashes;
    for (const std::string & owner : string_split<std::string>(key, '+')) {
        hashes.push_back(owner.substr(0, owner.find('@')));
    }
    const auto rows = registry ? registry->rows() : std::vector<server_delta_registry::row>();
    for (const std::string & hash : hashes) {
        const auto row = std::find_if(rows.begin(), rows.end(), [&](const auto & r) { return !hash.empty() && r.entry.hash == hash; });
        if (!hash.empty() && row == rows.end()) {
            throw std::runtime_error("the file was computed with a delta that is not loaded, content hash " + hash);
        }
        owners.push_back(hash.empty() ? "the base" : "'" + row->entry.name + "'");
    }
    for (const std::string & name : string_split<std::string>(parts, '\n')) {
        const auto row = std::find_if(rows.begin(), rows.end(), [&](const auto & r) { return r.entry.name == name; });
        wanted.push_back(row == rows.end() ? "" : row->entry.hash);
    }
    std::sort(hashes.begin(), hashes.end());
    std::sort(wanted.begin(), wanted.end());
    if (!parts.empty() && wanted != hashes) {
        std::string shown = parts;
        string_replace_all(shown, "\n", "' and '");
        throw std::runtime_error("the file was computed by " + string_join(owners, " and ") + ", not by '" + shown + "'");
    }
}
