#include "delta-routes.h"

#include "delta-address.h"
#include "delta-set.h"

#include <algorithm>
#include <cctype>
#include <cfloat>

// Returns the JSON object in a request's body.
static json body_of(const server_http_req & req) {
    json body;
    try {
        body = json::parse(req.body);
    } catch (const std::exception &) {
        throw std::invalid_argument("the body is no JSON");
    }
    if (!body.is_object()) {
        throw std::invalid_argument("the body must be a JSON object");
    }
    return body;
}

// Returns field `key`, or an empty text.
static std::string text_of(const json & body, const char * key) {
    if (!body.contains(key) || body.at(key).is_null()) {
        return "";
    }
    if (!body.at(key).is_string()) {
        throw std::invalid_argument(string_format("\"%s\" must be a string", key));
    }
    return body.at(key).get<std::string>();
}

static std::string needed_text(const json & body, const char * key) {
    const std::string text = text_of(body, key);
    if (text.empty()) {
        throw std::invalid_argument(string_format("\"%s\" is missing", key));
    }
    return text;
}

// Returns the condition of a change, a content hash; empty where there is none.
static std::string if_hash_of(const json & body) {
    static const char * const KEY = "if_content_hash";

    std::string hash = text_of(body, KEY);
    std::transform(hash.begin(), hash.end(), hash.begin(), [](unsigned char ch) { return std::tolower(ch); });
    const bool is_there = body.contains(KEY) && !body.at(KEY).is_null();
    if (is_there && (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != std::string::npos)) {
        throw std::invalid_argument(string_format("\"%s\" must be a content hash, 64 hex digits", KEY));
    }
    return hash;
}

static bool flag_of(const json & body, const char * key) {
    if (!body.contains(key) || body.at(key).is_null()) {
        return false;
    }
    if (!body.at(key).is_boolean()) {
        throw std::invalid_argument(string_format("\"%s\" must be true or false", key));
    }
    return body.at(key).get<bool>();
}

static server_delta_load load_of(const json & body, bool is_reload) {
    server_delta_load load = { needed_text(body, "name"), text_of(body, "file"), text_of(body, "uri"), flag_of(body, "pin"), is_reload,
                               if_hash_of(body) };
    if (!load.file.empty() && !load.address.empty()) {
        throw std::invalid_argument("a load has \"file\" or \"uri\", not both");
    }
    return load;
}

static server_http_res_ptr answer(const json & data) {
    auto res  = std::make_unique<server_http_res>();
    res->data = safe_json_to_str(data);
    return res;
}

static server_http_res_ptr answer_text(const std::string & text) {
    auto res          = std::make_unique<server_http_res>();
    res->content_type = "text/plain; charset=utf-8";
    res->data         = text;
    return res;
}

// An answer that tells a controller that what it asks for is so already. KubeAI reads vLLM's "error", the production stack the same fields
// at the top, where older versions of vLLM have them; both look for this type and these words.
static server_http_res_ptr vllm_refusal(const std::string & message) {
    json error    = { { "message", message }, { "type", "InvalidUserInput" }, { "param", nullptr }, { "code", 400 } };
    json all      = error;
    all["object"] = "error";
    all["error"]  = std::move(error);
    auto res      = answer(all);
    res->status   = 400;
    return res;
}

// Returns upstream's type of an error that has a status of its own.
static error_type type_of(int status) {
    if (status == SERVER_DELTA_ERROR_LATE) {
        return ERROR_TYPE_UNAVAILABLE;
    }
    return status >= 500 ? ERROR_TYPE_SERVER : ERROR_TYPE_INVALID_REQUEST;
}

server_http_res_ptr server_delta_answer(const server_delta_error & e) {
    const bool has_status = e.type >= 400;
    json       error      = format_error_response(e.what(), has_status ? type_of(e.type) : (error_type) e.type);
    if (has_status) {
        error["code"] = e.type;
    }
    auto res    = answer({ { "error", error } });
    res->status = json_value(error, "code", 500);
    if (e.retry_after_s > 0) {
        res->headers["Retry-After"] = std::to_string(e.retry_after_s);
    }
    SRV_WRN("got exception: %s\n", res->data.c_str());
    return res;
}

// Returns whether the body says that it is JSON. A page of another origin cannot send that without asking (CORS), but any other type.
static bool is_json(const server_http_req & req) {
    const auto header = std::find_if(req.headers.begin(), req.headers.end(), [](const auto & field) {
        std::string name = field.first;
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char ch) { return std::tolower(ch); });
        return name == "content-type";
    });
    if (header == req.headers.end()) {
        return false;
    }
    std::string type = header->second.substr(0, header->second.find(';'));
    type.erase(type.find_last_not_of(" \t") + 1);
    std::transform(type.begin(), type.end(), type.begin(), [](unsigned char ch) { return std::tolower(ch); });
    return type == "application/json";
}

// Returns a handler of what changes the server: JSON only.
static server_http_context::handler_t with_json(server_http_context::handler_t handler) {
    return [handler = std::move(handler)](const server_http_req & req) -> server_http_res_ptr {
        if (is_json(req)) {
            return handler(req);
        }
        json error    = format_error_response("the body must be JSON, and the header Content-Type: application/json say so", //
                                              ERROR_TYPE_INVALID_REQUEST);
        error["code"] = 415;
        auto res      = answer({ { "error", error } });
        res->status   = 415;
        return res;
    };
}

void server_delta_add_routes(const server_http_context & http, server_delta_set & deltas, const server_http_context::handler_t & get_models,
                             server_delta_wrapper wrap) {
    const auto post = [&](const char * path, server_http_context::handler_t handler) {
        http.post(path, wrap(with_json(std::move(handler))));
    };
    http.get("/v1/models/.+", wrap(get_models)); // The path is a pattern, because the base's name may have slashes.
    http.get("/deltas", wrap([&deltas](const server_http_req & req) { return answer(deltas.list(req)); }));

    post("/deltas/load", [&deltas](const server_http_req & req) {
        const json body = body_of(req);
        return answer(deltas.admin_load(req, load_of(body, false)));
    });

    post("/deltas/reload", [&deltas](const server_http_req & req) {
        const json body = body_of(req);
        return answer(deltas.admin_load(req, load_of(body, true)));
    });

    post("/deltas/unload", [&deltas](const server_http_req & req) {
        const json        body = body_of(req);
        const std::string name = needed_text(body, "name");
        deltas.admin_unload(req, name, if_hash_of(body));
        return answer({ { "name", name }, { "state", "unloaded" } });
    });

    post("/deltas/blend", [&deltas](const server_http_req & req) {
        const json        body = body_of(req);
        const std::string name = needed_text(body, "name");
        const std::string spec = text_of(body, "spec");
        if (spec.empty() == !body.contains("deltas")) {
            throw std::invalid_argument("a blend needs \"spec\" or \"deltas\", one of them");
        }
        // The server's bound on scales is checked with the names.
        auto parts = spec.empty() ? server_delta_parts_of(body.at("deltas"), FLT_MAX) : dqrelo_parse_blend(spec, "\"spec\"", FLT_MAX);
        return answer(deltas.admin_blend(req, name, std::move(parts), text_of(body, "template")));
    });

    // The answers are vLLM's, as its clients look for them.
    post("/v1/load_lora_adapter", [&deltas](const server_http_req & req) {
        const json        body       = body_of(req);
        const std::string name       = needed_text(body, "lora_name");
        const std::string path       = needed_text(body, "lora_path");
        const bool        is_inplace = flag_of(body, "load_inplace");
        if (!is_inplace && deltas.is_loaded(req, name)) {
            return vllm_refusal("The lora adapter '" + name +
                                "' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.");
        }
        const bool is_address = server_delta_is_address(path);
        deltas.admin_load(req, { name, is_address ? "" : path, is_address ? path : "", false, is_inplace, "" });
        return answer_text("Success: LoRA adapter '" + name + "' added successfully.");
    });

    post("/v1/unload_lora_adapter", [&deltas](const server_http_req & req) {
        const std::string name = needed_text(body_of(req), "lora_name");
        try {
            deltas.admin_unload(req, name);
        } catch (const server_delta_error & e) {
            if (e.type != ERROR_TYPE_NOT_FOUND) {
                throw;
            }
            return vllm_refusal("The lora adapter '" + name + "' cannot be found.");
        }
        return answer_text("Success: LoRA adapter '" + name + "' removed successfully.");
    });
}

void server_delta_add_router_routes(const server_http_context & http, const common_params & params, server_delta_wrapper wrap) {
    static const std::string ROUTER =
        "router mode serves no deltas: their names are not routed, and options for deltas go to every server that it starts. "
        "Start a server with -m for each base";
    const auto & options = params.dqrelo;
    if (!options.deltas.empty() || !options.deltas_dir.empty()) {
        SRV_WRN("%s\n", ROUTER.c_str());
    }
    const auto refuse = [](const server_http_req &) -> server_http_res_ptr { throw server_delta_error(ERROR_TYPE_NOT_SUPPORTED, ROUTER); };
    http.get("/deltas", wrap(refuse));
    for (const char * path :
         { "/deltas/load", "/deltas/reload", "/deltas/unload", "/deltas/blend", "/v1/load_lora_adapter", "/v1/unload_lora_adapter" }) {
        http.post(path, wrap(refuse));
    }
}
