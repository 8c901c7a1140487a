#include "logprobs.h"

#include "common.h"

#include <atomic>
#include <thread>

// Below this many logits a thread is not worth its start.
static constexpr size_t N_LOGITS_PER_THREAD = 1 << 20;
static constexpr size_t N_THREADS_MAX       = 8;

// A token of a prompt, with the logits of the place before it.
struct seen_token {
    llama_token   token;
    const float * logits;
};

server_logprobs::server_logprobs(server_logprobs_options options) :
    options(std::make_shared<const server_logprobs_options>(std::move(options))),
    of_tokens(std::make_shared<std::vector<server_logprobs_row>>()) {}

// Returns the tokens' rows. A row of 128,000 logits takes half a millisecond, so many of them go to several threads.
static std::vector<server_logprobs_row> rows_of(const llama_vocab * vocab, const std::vector<seen_token> & tokens, int n_top) {
    std::vector<server_logprobs_row> rows(tokens.size());
    std::atomic<size_t>              next{ 0 };
    const auto                       work = [&] {
        for (size_t i = next++; i < tokens.size(); i = next++) {
            rows[i] = server_logprobs_row_of(vocab, tokens[i].token, tokens[i].logits, n_top);
        }
    };
    const size_t             n_wanted  = tokens.size() * llama_vocab_n_tokens(vocab) / N_LOGITS_PER_THREAD;
    const size_t             n_threads = std::min({ n_wanted, N_THREADS_MAX, (size_t) std::thread::hardware_concurrency() });
    std::vector<std::thread> others;
    for (size_t i = 1; i < n_threads; i++) {
        others.emplace_back(work);
    }
    work();
    for (auto & thread : others) {
        thread.join();
    }
    return rows;
}

std::string server_logprobs::take_prompt(llama_context * ctx, const common_batch & batch, int id_slot, const server_tokens & prompt) const {
    if (!of_prompt() || of_tokens->size() >= prompt.size()) {
        return "";
    }
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    if (of_tokens->empty()) {
        of_tokens->push_back(server_logprobs_row_of(vocab, prompt[0]));
    }
    std::vector<seen_token> tokens;
    for (int32_t i = 0; i < batch.size(); i++) {
        const size_t next = of_tokens->size() + tokens.size();
        if (batch.tokens[i].seq_id == id_slot && next < prompt.size()) {
            tokens.push_back({ prompt[next], llama_get_logits_ith(ctx, i) });
        }
    }
    for (auto & row : rows_of(vocab, tokens, options->n_top_max())) {
        if (row.rank == 0) {
            return "the prompt's log probabilities are not numbers: NaN or infinity in what the model computed";
        }
        of_tokens->push_back(std::move(row));
    }
    return "";
}

void server_logprobs::take_generated(llama_context * ctx, int32_t row, llama_token token) const {
    if (!are_asked()) {
        return;
    }
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    of_generated.push_back(options->n_top < 0 ? server_logprobs_row_of(vocab, token)
                                              : server_logprobs_row_of(vocab, token, llama_get_logits_ith(ctx, row), options->n_top));
}

void server_logprobs::drop() const {
    of_tokens.reset();
    of_generated.clear();
}
