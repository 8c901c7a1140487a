#include "logprobs-row.h"

#include "common.h"

#include <algorithm>
#include <cmath>

// What vLLM writes where a probability is zero; JSON has no infinity.
static constexpr float LOGPROB_MIN = -9999.0f;

using scored = std::pair<float, llama_token>; // a logit and its token

// Orders the better one first, and of equals the one with the smaller id.
static bool is_better(const scored & a, const scored & b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// Returns the n best of a row, best first.
static std::vector<scored> best_of(const float * logits, int32_t n_vocab, int n) {
    std::vector<scored> best; // a heap with the worst of them in front
    for (llama_token id = 0; id < n_vocab && n > 0; id++) {
        if ((int) best.size() < n) {
            best.emplace_back(logits[id], id);
            std::push_heap(best.begin(), best.end(), is_better);
        } else if (logits[id] > best.front().first) {
            std::pop_heap(best.begin(), best.end(), is_better);
            best.back() = { logits[id], id };
            std::push_heap(best.begin(), best.end(), is_better);
        }
    }
    std::sort_heap(best.begin(), best.end(), is_better);
    return best;
}

server_logprobs_row server_logprobs_row_of(const llama_vocab * vocab, llama_token token) {
    server_logprobs_row row;
    row.token = { token, 0.0f, common_token_to_piece(vocab, token, true) };
    return row;
}

server_logprobs_row server_logprobs_row_of(const llama_vocab * vocab, llama_token token, const float * logits, int n_top) {
    server_logprobs_row row     = server_logprobs_row_of(vocab, token);
    const int32_t       n_vocab = llama_vocab_n_tokens(vocab);
    const float         max     = *std::max_element(logits, logits + n_vocab);
    double              sum     = 0.0;
    int32_t             n_above = 0;
    for (llama_token id = 0; id < n_vocab; id++) {
        sum += std::exp(logits[id] - max);
        n_above += logits[id] > logits[token];
    }
    if (!std::isfinite(max) || !std::isfinite(sum)) {
        return row;
    }
    const double log_sum    = max + std::log(sum);
    const auto   logprob_of = [&](float logit) { return std::max((float) (logit - log_sum), LOGPROB_MIN); };

    row.rank          = 1 + n_above;
    row.token.logprob = logprob_of(logits[token]);
    for (const auto & [logit, id] : best_of(logits, n_vocab, n_top)) {
        row.top.push_back({ id, logprob_of(logit), common_token_to_piece(vocab, id, true) });
    }
    return row;
}
