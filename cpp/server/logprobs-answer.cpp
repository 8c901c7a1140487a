// The log probabilities in an answer.
#include "logprobs.h"

static size_t n_chars(const std::string & text) {
    return std::count_if(text.begin(), text.end(), [](unsigned char ch) { return (ch & 0xC0) != 0x80; });
}

static bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Returns a token's name: its text, or OpenAI's "bytes:\xe2\x82" for a piece of a character, or vLLM's "token_id:7".
static std::string name_of(const server_logprobs_row::entry & entry, bool as_id) {
    if (as_id) {
        return "token_id:" + std::to_string(entry.token);
    }
    if (is_valid_utf8(entry.piece)) {
        return entry.piece;
    }
    std::string name = "bytes:";
    for (const unsigned char byte : entry.piece) {
        name += string_format("\\x%02x", byte);
    }
    return name;
}

// Returns the n best tokens and the row's own, each with its log probability. Of two tokens with one name the better one counts.
static json top_by_name(const server_logprobs_row & row, int n, bool as_ids) {
    json       top = json::object();
    const auto add = [&](const server_logprobs_row::entry & entry) {
        const std::string name = name_of(entry, as_ids);
        if (!top.contains(name)) {
            top[name] = entry.logprob;
        }
    };
    for (size_t i = 0; i < row.top.size() && (int) i < n; i++) {
        add(row.top[i]);
    }
    add(row.token);
    return top;
}

// The same by token id, as vLLM's prompt_logprobs are.
static json top_by_id(const server_logprobs_row & row, int n) {
    json       top = json::object();
    const auto add = [&](const server_logprobs_row::entry & entry, int32_t rank) {
        const std::string id = std::to_string(entry.token);
        if (!top.contains(id)) {
            top[id] = { { "logprob", entry.logprob }, { "rank", rank }, { "decoded_token", name_of(entry, false) } };
        }
    };
    for (size_t i = 0; i < row.top.size() && (int) i < n; i++) {
        add(row.top[i], (int32_t) i + 1);
    }
    add(row.token, row.rank);
    return top;
}

// Returns OpenAI's four lists, over the prompt's tokens where it is echoed and the generated ones. `text` is the answer's whole text:
// offsets are characters of it.
json server_logprobs::completion_logprobs(const std::string & text) const {
    std::vector<const server_logprobs_row *> rows;
    std::string                              pieces;
    for (const auto & row : *of_tokens) {
        if (options->has_echo) {
            rows.push_back(&row);
            pieces += row.token.piece;
        }
    }
    // The tokens of a prompt that came as text may begin with more than the text: a beginning token, a blank.
    const bool   has_more = options->has_echo && options->has_text && ends_with(pieces, options->text);
    const size_t n_before = has_more ? n_chars(pieces) - n_chars(options->text) : 0;
    for (const auto & row : of_generated) {
        rows.push_back(&row);
    }

    json         tokens = json::array(), logprobs = json::array(), top = json::array(), offsets = json::array();
    const size_t n_text = n_chars(text);
    size_t       n_seen = 0;
    for (const auto * row : rows) {
        const bool is_known = row->rank > 0;
        tokens.push_back(name_of(row->token, options->has_ids_as_names));
        logprobs.push_back(is_known ? json(row->token.logprob) : json(nullptr));
        top.push_back(is_known ? top_by_name(*row, options->n_top, options->has_ids_as_names) : json(nullptr));
        offsets.push_back(std::min(n_seen > n_before ? n_seen - n_before : 0, n_text));
        n_seen += n_chars(row->token.piece);
    }
    return { { "tokens", tokens }, { "token_logprobs", logprobs }, { "top_logprobs", top }, { "text_offset", offsets } };
}

json server_logprobs::prompt_logprobs() const {
    json list = json::array();
    for (const auto & row : *of_tokens) {
        list.push_back(row.rank > 0 ? top_by_id(row, options->n_top_prompt) : json(nullptr));
    }
    return list;
}

json server_logprobs::generated_ids() const {
    json ids = json::array();
    for (const auto & row : of_generated) {
        ids.push_back(row.token.token);
    }
    return ids;
}

void server_logprobs::add_to(json & choice, const std::string & prompt) const {
    if (!are_asked()) {
        return;
    }
    if (options->has_echo) {
        choice["text"] = (options->has_text ? options->text : prompt) + choice.at("text").get<std::string>();
    }
    if (options->n_top >= 0) {
        json logprobs = completion_logprobs(choice.at("text").get<std::string>());
        if (!choice.at("logprobs").is_null()) { // what llama.cpp has for its own clients
            logprobs["content"] = choice.at("logprobs").at("content");
        }
        choice["logprobs"] = logprobs;
    }
    if (options->n_top_prompt >= 0) {
        choice["prompt_logprobs"] = prompt_logprobs();
    }
    if (options->has_token_ids) {
        choice["prompt_token_ids"] = options->prompt;
        choice["token_ids"]        = generated_ids();
    }
}

void server_logprobs::add_to_chat(json & answer) const {
    if (!are_asked()) {
        return;
    }
    if (options->n_top_prompt >= 0) {
        answer["prompt_logprobs"] = prompt_logprobs();
    }
    if (options->has_token_ids) {
        answer["prompt_token_ids"]        = options->prompt;
        answer["choices"][0]["token_ids"] = generated_ids();
    }
}
