// logprobs-row.h: from one row of logits to the log probabilities of a token and of the best ones.
#pragma once

#include "llama.h"

#include <string>
#include <vector>

struct server_logprobs_row {
    struct entry {
        llama_token token;
        float       logprob;
        std::string piece; // the token's text, special tokens' too; not always whole UTF-8
    };

    entry              token{ LLAMA_TOKEN_NULL, 0.0f, "" };
    int32_t            rank = 0; // 1: no other token is more likely; 0: nothing is known of the token, as of a prompt's first one
    std::vector<entry> top;      // the best, best first
};

// Returns the row of a token of which nothing else is known.
server_logprobs_row server_logprobs_row_of(const llama_vocab * vocab, llama_token token);

// Returns the row of `token`, with the `n_top` best (at most the vocabulary), where `logits` are those of the place before it. Rank 0: the
// logits are not numbers.
server_logprobs_row server_logprobs_row_of(const llama_vocab * vocab, llama_token token, const float * logits, int n_top);
