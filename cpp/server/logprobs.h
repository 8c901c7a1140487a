// logprobs.h: the log probabilities that a request asks for, of the tokens of its prompt ("echo", "prompt_logprobs") and of those that are
// generated ("logprobs"), as the APIs of OpenAI and vLLM have them. Lives in upstream's task_params.
#pragma once

#include "llama.h"
#include "logprobs-row.h"
#include "server-common.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

struct common_batch;

// How many tokens of prompts give their logits in one batch. Each takes a row of floats, as long as the vocabulary, in llama.cpp's output
// buffer: 128 rows of 152,000 tokens are 78 MB. More rows would make a step no faster on a CPU.
inline constexpr int32_t SERVER_LOGPROBS_ROWS_MAX = 128;

// What a request asks for.
struct server_logprobs_options {
    static constexpr int NONE = -1;

    bool         has_echo         = false;
    int          n_top            = NONE;  // "logprobs": so many of the best tokens at each place, and the token itself
    int          n_top_prompt     = NONE;  // "prompt_logprobs"
    bool         has_token_ids    = false; // "return_token_ids"
    bool         has_ids_as_names = false; // "return_tokens_as_token_ids"
    bool         has_text         = false; // The prompt came as the text below, not as tokens.
    std::string  text;
    llama_tokens prompt; // Filled where token ids are to be returned.

    bool are_of_prompt() const { return n_top_prompt >= 0 || (has_echo && n_top >= 0); }
    int  n_top_max() const { return std::max(n_top, n_top_prompt); }
};

// A task's options, and what was found. The main loop fills it in; the slot drops it when its task ends, though it keeps the task.
class server_logprobs {
public:
    server_logprobs() = default; // Asks for nothing.
    explicit server_logprobs(server_logprobs_options options);

    bool are_asked() const { return options != nullptr; }
    // Whether every token of the prompt must give its logits: nothing of it may come from a cache then.
    bool of_prompt() const { return options != nullptr && options->are_of_prompt(); }

    // After `batch` was computed: takes the rows of the slot's prompt in it. Returns an error line where one is not a number.
    std::string take_prompt(llama_context * ctx, const common_batch & batch, int id_slot, const server_tokens & prompt) const;
    // Takes the row from which `token` was sampled.
    void take_generated(llama_context * ctx, int32_t row, llama_token token) const;
    void drop() const;

    // Put into an answer what was asked for. `prompt` is its tokens' text, for a prompt that came as tokens.
    void add_to(json & choice, const std::string & prompt) const;
    void add_to_chat(json & answer) const;

private:
    json completion_logprobs(const std::string & text) const;
    json prompt_logprobs() const;
    json generated_ids() const;

    std::shared_ptr<const server_logprobs_options>            options;
    mutable std::shared_ptr<std::vector<server_logprobs_row>> of_tokens; // the prompt's; answers of the same prompt share them
    mutable std::vector<server_logprobs_row>                  of_generated;
};

// Returns for how many outputs a context's buffers are made, where `n` are needed without prompts' log probabilities.
inline int32_t server_logprobs_outputs(int32_t n, int32_t n_batch) {
    return std::min(n_batch, n + SERVER_LOGPROBS_ROWS_MAX);
}

// Returns whether a batch with these tokens takes one more token of a prompt with its logits.
template <typename batch_token>
bool server_logprobs_have_room(const std::vector<batch_token> & tokens) {
    return std::count_if(tokens.begin(), tokens.end(), [](const batch_token & t) { return t.is_prompt && t.output; }) <
           SERVER_LOGPROBS_ROWS_MAX;
}
