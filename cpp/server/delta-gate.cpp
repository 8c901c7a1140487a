#include "delta-gate.h"

#include "common.h"
#include "server-common.h"

#include <cpp-httplib/httplib.h>

#include <set>

// How deeply a body may nest, and a text in it, which may be JSON but is mostly prose or code that closes not all that it opens. Some
// 50,000 levels are what a thread's stack holds.
static constexpr size_t MAX_DEPTH         = 1000;
static constexpr size_t MAX_DEPTH_IN_TEXT = 10000;

// Where the caller lies between the gate and the route.
static const char * const CALLER = "dqrelo_caller";

// What a limited key may send a request to: each of these asks server_delta_set whether the caller may use the model.
static const std::set<std::string> OPEN_GET  = { "/deltas", "/models", "/v1/models", "/props", "/tokenizer_info" };
static const std::set<std::string> OPEN_POST = {
    "/completion",
    "/completions",
    "/v1/completions",
    "/chat/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
    "/audio/transcriptions",
    "/infill",
    "/embedding",
    "/embeddings",
    "/v1/embeddings",
    "/rerank",
    "/reranking",
    "/v1/rerank",
    "/v1/reranking",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/chat/completions/input_tokens",
    "/v1/chat/completions/input_tokens",
    "/responses/input_tokens",
    "/v1/responses/input_tokens",
    "/v1/messages/count_tokens",
};
static const std::string OPEN_MODEL = "/v1/models/"; // A model's name follows it.

static void refuse(httplib::Response & res, error_type type, const std::string & message) {
    const json error = format_error_response(message, type);
    res.status       = json_value(error, "code", 500);
    res.set_content(safe_json_to_str({ { "error", error } }), "application/json; charset=utf-8");
    SRV_WRN("refused: %s\n", message.c_str());
}

server_delta_gate::server_delta_gate(const common_params & params) :
    keys(params.dqrelo.keys),
    path_prefix(params.api_prefix),
    is_router(params.model.path.empty() && params.model.hf_repo.empty() && params.model.docker_repo.empty()) {}

// What upstream's check takes for the key in a header.
static std::string key_of(const std::string & header) {
    static const std::string PREFIX = "Bearer ";
    return header.compare(0, PREFIX.size(), PREFIX) == 0 ? header.substr(PREFIX.size()) : header;
}

bool server_delta_gate::has_one_credential(const httplib::Request & req, httplib::Response & res) const {
    const size_t n_authorization = req.get_header_value_count("Authorization");
    const size_t n_api_key       = req.get_header_value_count("X-Api-Key");
    const bool   is_one_key      = n_authorization == 1 && n_api_key == 1 &&
                                   key_of(req.get_header_value("Authorization")) == key_of(req.get_header_value("X-Api-Key"));
    if (n_authorization + n_api_key > 1 && !is_one_key) {
        refuse(res, ERROR_TYPE_INVALID_REQUEST,
               "the request has " + std::to_string(n_authorization + n_api_key) +
                   " credentials: send Authorization or X-Api-Key, once, or the same key in both");
        return false;
    }
    return true;
}

bool server_delta_gate::is_open(const std::string & method, const std::string & path) const {
    if (is_router || path.compare(0, path_prefix.size(), path_prefix) != 0) {
        return false; // A router has no deltas that could limit a key.
    }
    const std::string route = path.substr(path_prefix.size());
    if (method == "POST") {
        return OPEN_POST.count(route) > 0;
    }
    const bool is_model = route.size() > OPEN_MODEL.size() && route.compare(0, OPEN_MODEL.size(), OPEN_MODEL) == 0;
    return (method == "GET" || method == "HEAD") && (is_model || OPEN_GET.count(route) > 0);
}

bool server_delta_gate::admit(const httplib::Request & req, httplib::Response & res, const std::string & api_key) const {
    server_delta_caller caller(api_key, keys);
    if (caller.is_limited() && !is_open(req.method, req.path)) {
        refuse(res, ERROR_TYPE_PERMISSION, "this API key may use models, but not this endpoint");
        return false;
    }
    res.user_data.set(CALLER, std::move(caller));
    return true;
}

bool server_delta_gate::nests_within_bounds(const httplib::Request & req, httplib::Response & res) {
    size_t depth         = 0; // of what is open, outside of texts
    size_t depth_in_text = 0; // of the text that is open
    bool   in_text       = false;
    bool   is_escaped    = false;
    for (const char c : req.body) {
        if (in_text && is_escaped) {
            is_escaped = false;
        } else if (in_text && c == '\\') {
            is_escaped = true;
        } else if (c == '"') {
            in_text       = !in_text;
            depth_in_text = 0;
        } else if (c == '[' || c == '{') {
            size_t & d = in_text ? depth_in_text : depth;
            if (++d > (in_text ? MAX_DEPTH_IN_TEXT : MAX_DEPTH)) {
                refuse(res, ERROR_TYPE_INVALID_REQUEST,
                       "the request nests too deeply, expected at most " + std::to_string(MAX_DEPTH) +
                           " arrays and objects in one another");
                return false;
            }
        } else if (c == ']' || c == '}') {
            size_t & d = in_text ? depth_in_text : depth;
            d -= d > 0 ? 1 : 0;
        }
    }
    return true;
}

server_delta_caller server_delta_gate::caller_of(const httplib::Response & res) {
    const auto * caller = res.user_data.get<server_delta_caller>(CALLER);
    return caller != nullptr ? *caller : server_delta_caller();
}
