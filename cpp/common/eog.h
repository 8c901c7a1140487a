// eog.h: end-of-generation tokens of one request. In llama.cpp they belong to the vocabulary; a fine-tune may end its answers with other
// ones.
#pragma once

#include "llama.h"

#include <vector>

// The tokens that end generation under a fine-tune; empty: those of the vocabulary.
using dqrelo_eog = std::vector<llama_token>;

bool dqrelo_is_eog(const llama_vocab * vocab, llama_token token, const dqrelo_eog & eog);

// Every token of the vocabulary that ends generation in stock.
dqrelo_eog dqrelo_vocab_eog(const llama_vocab * vocab);

// Makes a grammar end with the tokens of `eog` in place of the vocabulary's. Takes ownership of `grammar` and returns what replaces it:
// `grammar` itself when there is nothing to change (NULL grammar, empty eog). `lazy`: the grammar sleeps until a trigger.
llama_sampler * dqrelo_grammar_init(llama_sampler * grammar, const llama_vocab * vocab, const dqrelo_eog & eog, bool lazy);

// Replaces the bans of the vocabulary's end tokens (--ignore-eos) by bans of the fine-tune's.
void dqrelo_ban_eog(std::vector<llama_logit_bias> & logit_bias, const llama_vocab * vocab, const dqrelo_eog & eog);
