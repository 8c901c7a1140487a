#include "vllm-tokenizer.h"

#include "server-context.h"

using handler = server_http_context::handler_t;

static bool is_good(const server_http_res & res) {
    return res.status == 200 && !res.is_stream();
}

// Returns what GET /props says of the model that a request names.
static json props_of(const server_http_req & req, const std::string & model, const handler & get_props) {
    server_http_req own(req);
    own.params["model"] = model;
    return json::parse(get_props(own)->data);
}

static bool flag_of(const json & body, const char * key, bool otherwise) {
    if (!body.contains(key) || body.at(key).is_null()) {
        return otherwise;
    }
    if (!body.at(key).is_boolean()) {
        throw std::invalid_argument(string_format("\"%s\" must be true or false", key));
    }
    return body.at(key).get<bool>();
}

static std::string model_of(const json & body) {
    return body.contains("model") && body.at("model").is_string() ? body.at("model").get<std::string>() : "";
}

// The answer to {"prompt": text, "add_special_tokens": true, "return_token_strs": false}.
static server_http_res_ptr tokenize(const server_http_req & req, const json & body, const handler & post_tokenize,
                                    const handler & get_props) {
    if (!body.at("prompt").is_string()) {
        throw std::invalid_argument("\"prompt\" must be a string");
    }
    const bool with_texts = flag_of(body, "return_token_strs", false);
    json       own_body   = { { "content", body.at("prompt") },
                              { "add_special", flag_of(body, "add_special_tokens", true) },
                              { "with_pieces", with_texts } };
    if (body.contains("model")) {
        own_body["model"] = body.at("model");
    }
    server_http_req own(req);
    own.body = safe_json_to_str(own_body);
    auto res = post_tokenize(own);
    if (!is_good(*res)) {
        return res;
    }
    const json tokens = json::parse(res->data).at("tokens");
    json       ids    = json::array();
    json       texts  = with_texts ? json::array() : json(nullptr);
    for (const json & token : tokens) {
        ids.push_back(with_texts ? token.at("id") : token);
        if (with_texts) {
            const json & piece = token.at("piece"); // a list of bytes where it is no whole text
            texts.push_back(piece.is_string() ? piece : json("\uFFFD"));
        }
    }
    const json props = props_of(req, model_of(body), get_props);
    res->data        = safe_json_to_str({ { "count", ids.size() },
                                          { "max_model_len", props.at("default_generation_settings").at("n_ctx") },
                                          { "tokens", ids },
                                          { "token_strs", texts } });
    return res;
}

static server_http_res_ptr tokenizer_info(const server_http_req & req, const handler & get_props) {
    auto res = get_props(req);
    if (!is_good(*res)) {
        return res;
    }
    const json props   = json::parse(res->data);
    const auto text_or = [&](const char * key) { return props.at(key) == "" ? json(nullptr) : props.at(key); };
    res->data          = safe_json_to_str({ { "tokenizer_class", "llama.cpp" },
                                            { "bos_token", text_or("bos_token") },
                                            { "eos_token", text_or("eos_token") },
                                            { "pad_token", nullptr },
                                            { "chat_template", text_or("chat_template") },
                                            { "model_max_length", props.at("default_generation_settings").at("n_ctx") } });
    return res;
}

void server_vllm_tokenizer(const server_http_context & http, server_routes & routes, handler (*wrap)(handler)) {
    const handler get_props = routes.get_props;

    routes.post_tokenize = [own = routes.post_tokenize, get_props](const server_http_req & req) {
        const json body = json::parse(req.body);
        if (body.is_object() && body.contains("messages")) {
            throw std::invalid_argument("\"messages\" are not made into tokens here: POST /apply-template gives their prompt");
        }
        return body.is_object() && body.contains("prompt") && !body.contains("content") ? tokenize(req, body, own, get_props) : own(req);
    };
    // Both ask with {"tokens": [...]}; llama.cpp's clients read "content", vLLM's "prompt".
    routes.post_detokenize = [own = routes.post_detokenize](const server_http_req & req) {
        server_http_res_ptr res;
        try {
            res = own(req);
        } catch (const std::out_of_range &) {
            throw std::invalid_argument("\"tokens\" must be ids of the vocabulary");
        }
        if (is_good(*res)) {
            json answer      = json::parse(res->data);
            answer["prompt"] = answer.at("content");
            res->data        = safe_json_to_str(answer);
        }
        return res;
    };
    http.get("/tokenizer_info", wrap([get_props](const server_http_req & req) { return tokenizer_info(req, get_props); }));
}
