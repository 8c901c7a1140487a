// What a request asks for: its fields, their bounds, and what they mean for its tasks.
#include "logprobs-request.h"

// vLLM's default for the largest "logprobs".
static constexpr int N_TOP_MAX = 20;

// How many log probabilities of prompts one request may ask for. One takes some 40 bytes while it is computed and 200 while it is answered.
static constexpr size_t N_ENTRIES_MAX = 1 << 20;

static bool is_given(const json & data, const char * key) {
    return data.contains(key) && !data.at(key).is_null();
}

static bool flag_of(const json & data, const char * key, bool otherwise) {
    if (!is_given(data, key)) {
        return otherwise;
    }
    if (!data.at(key).is_boolean()) {
        throw std::invalid_argument(
            string_format("\"%s\" must be true or false, got %s", key, data.at(key).dump_safe().substr(0, 40).c_str()));
    }
    return data.at(key).get<bool>();
}

// Returns server_logprobs_options::NONE where the field is not there.
static int n_top_of(const json & data, const char * key) {
    if (!is_given(data, key)) {
        return server_logprobs_options::NONE;
    }
    const json & value = data.at(key);
    const double n     = value.is_number_integer() ? value.get<double>() : -1.0;
    if (!(n >= 0 && n <= N_TOP_MAX)) {
        throw std::invalid_argument(
            string_format("\"%s\" must be a whole number from 0 to %d, got %s", key, N_TOP_MAX, value.dump_safe().substr(0, 40).c_str()));
    }
    return (int) n;
}

static server_logprobs_options options_of(const json & data, task_response_type type) {
    server_logprobs_options options;
    const bool              is_completion = type == TASK_RESPONSE_TYPE_OAI_CMPL;
    if (!is_completion && type != TASK_RESPONSE_TYPE_OAI_CHAT) {
        return options;
    }
    if (is_completion) { // In a chat, "echo" and "logprobs" mean something else.
        options.has_echo         = flag_of(data, "echo", false);
        options.n_top            = n_top_of(data, "logprobs");
        options.has_ids_as_names = flag_of(data, "return_tokens_as_token_ids", false);
    }
    options.n_top_prompt  = n_top_of(data, "prompt_logprobs");
    options.has_token_ids = flag_of(data, "return_token_ids", false);
    if (flag_of(data, "stream", false)) {
        const char * field = options.has_echo ? "echo" : options.n_top_prompt >= 0 ? "prompt_logprobs" : "return_token_ids";
        if (options.has_echo || options.n_top_prompt >= 0 || options.has_token_ids) {
            throw std::invalid_argument(string_format("\"%s\" is not available with \"stream\": true", field));
        }
        options.n_top = server_logprobs_options::NONE; // A stream's are upstream's.
    }
    return options;
}

// Refuses prompts whose log probabilities would fill the memory, and those that are not all text.
static void check_prompts(const std::vector<server_task> & tasks, const server_logprobs_options & options) {
    size_t n_tokens = 0;
    for (const auto & task : tasks) {
        n_tokens += task.tokens.size();
        for (size_t i = 0; i < task.tokens.size(); i++) {
            if (task.tokens[i] == LLAMA_TOKEN_NULL) {
                throw std::invalid_argument("log probabilities and token ids of a prompt with images or audio are not available");
            }
        }
    }
    const size_t n_entries = n_tokens * (options.n_top_max() + 1);
    if (options.are_of_prompt() && n_entries > N_ENTRIES_MAX) {
        throw std::invalid_argument(
            string_format("the request asks for %zu log probabilities of its prompts (%zu tokens, %d for each), expected at most %zu. "
                          "Send fewer prompts at a time, or ask for fewer tokens at each place",
                          n_entries, n_tokens, options.n_top_max() + 1, N_ENTRIES_MAX));
    }
}

// Returns the text as which prompt `index` of `n` came, or NULL where it came as something else.
static const json * text_of(const json & prompt, size_t n, size_t index) {
    const bool   is_list = prompt.is_array() && prompt.size() == n;
    const json & one     = is_list ? prompt.at(index) : prompt;
    return one.is_string() ? &one : nullptr;
}

static void give(task_params & params, const server_logprobs & logprobs) {
    params.logprobs                  = logprobs;
    params.sampling.backend_sampling = false; // Its logits never come to the host.
    params.cache_prompt              = params.cache_prompt && !logprobs.of_prompt();
}

void server_logprobs_apply(const json & data, task_response_type type, std::vector<server_task> & tasks) {
    server_logprobs_options options = options_of(data, type);
    if (!options.has_echo && !options.has_token_ids && options.n_top_max() < 0) {
        return;
    }
    if (options.has_echo || options.has_token_ids || options.are_of_prompt()) {
        check_prompts(tasks, options);
    }
    for (size_t i = 0; i < tasks.size(); i++) {
        const json * text = text_of(data.at("prompt"), tasks.size(), i);
        options.has_text  = text != nullptr;
        options.text      = text != nullptr ? text->get<std::string>() : "";
        options.prompt    = options.has_token_ids ? tasks[i].tokens.get_text_tokens() : llama_tokens();
        const server_logprobs logprobs(options);
        give(tasks[i].params, logprobs);
        for (auto & child : tasks[i].child_tasks) {
            give(child.params, logprobs);
        }
    }
}

bool server_logprobs_add_special(const json & data, task_response_type type) {
    return type != TASK_RESPONSE_TYPE_OAI_CMPL || flag_of(data, "add_special_tokens", true);
}
