// delta-vocab.h: the base's vocabulary as a delta has it: the same words, and the special tokens that its file names. Upstream's functions
// that make tokens of a prompt take it in place of the vocabulary.
#pragma once

#include "llama.h"

#include <string>
#include <vector>

struct dqrelo_delta;

struct server_delta_vocab {
    const llama_vocab * base    = nullptr;
    llama_token         bos     = LLAMA_TOKEN_NULL;
    llama_token         eos     = LLAMA_TOKEN_NULL;
    bool                add_bos = false;
    bool                add_eos = false;

    server_delta_vocab() = default;

    // The base's own.
    server_delta_vocab(const llama_vocab * base); // NOLINT(google-explicit-constructor): stands for the vocabulary

    // A delta's: what its file names, and the base's where it is silent.
    server_delta_vocab(const llama_vocab * base, const dqrelo_delta * delta);

    // Whether the base puts the same tokens around a prompt.
    bool has_ends_of_base() const;

    operator const llama_vocab *() const { return base; } // NOLINT(google-explicit-constructor): words are the base's
};

// The functions have llama.cpp's names, and work for a delta.
llama_token              llama_vocab_bos(const server_delta_vocab & vocab);
llama_token              llama_vocab_eos(const server_delta_vocab & vocab);
bool                     llama_vocab_get_add_bos(const server_delta_vocab & vocab);
bool                     llama_vocab_get_add_eos(const server_delta_vocab & vocab);
std::vector<llama_token> common_tokenize(const server_delta_vocab & vocab, const std::string & text, bool add_special, bool parse_special);
