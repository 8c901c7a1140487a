#include "delta-routes.h"

#include "delta-set.h"

// The JSON object in a request's body.
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

// Field `key`, or an empty text.
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

static bool flag_of(const json & body, const char * key) {
    if (!body.contains(key) || body.at(key).is_null()) {
        return false;
    }
    if (!body.at(key).is_boolean()) {
        throw std::invalid_argument(string_format("\"%s\" must be true or false", key));
    }
    return body.at(key).get<bool>();
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

void server_delta_add_routes(const server_http_context & http, server_delta_set & deltas, server_delta_wrapper wrap) {
    http.get("/deltas", wrap([&deltas](const server_http_req &) { return answer(deltas.list()); }));

    http.post("/deltas/load", wrap([&deltas](const server_http_req & req) {
                  const json body = body_of(req);
                  return answer(deltas.admin_load({ needed_text(body, "name"), text_of(body, "file"), flag_of(body, "pin"), false },
                                                  req.should_stop));
              }));

    http.post("/deltas/reload", wrap([&deltas](const server_http_req & req) {
                  const json body = body_of(req);
                  return answer(
                      deltas.admin_load({ needed_text(body, "name"), text_of(body, "file"), flag_of(body, "pin"), true }, req.should_stop));
              }));

    http.post("/deltas/unload", wrap([&deltas](const server_http_req & req) {
                  const std::string name = needed_text(body_of(req), "name");
                  deltas.admin_unload(name, req.should_stop);
                  return answer({ { "name", name }, { "state", "unloaded" } });
              }));

    // vLLM's answers, as its clients look for them
    http.post("/v1/load_lora_adapter", wrap([&deltas](const server_http_req & req) {
                  const json        body       = body_of(req);
                  const std::string name       = needed_text(body, "lora_name");
                  const std::string path       = needed_text(body, "lora_path");
                  const bool        is_inplace = flag_of(body, "load_inplace");
                  if (!is_inplace && deltas.is_loaded(name)) {
                      throw std::invalid_argument(
                          "The lora adapter '" + name +
                          "' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.");
                  }
                  deltas.admin_load({ name, path, false, is_inplace }, req.should_stop);
                  return answer_text("Success: LoRA adapter '" + name + "' added successfully.");
              }));

    http.post("/v1/unload_lora_adapter", wrap([&deltas](const server_http_req & req) {
                  const std::string name = needed_text(body_of(req), "lora_name");
                  deltas.admin_unload(name, req.should_stop);
                  return answer_text("Success: LoRA adapter '" + name + "' removed successfully.");
              }));
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
    for (const char * path : { "/deltas/load", "/deltas/reload", "/deltas/unload", "/v1/load_lora_adapter", "/v1/unload_lora_adapter" }) {
        http.post(path, wrap(refuse));
    }
}
