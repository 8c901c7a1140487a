#include "delta-vocab.h"

#include "common.h"
#include "dqrelo.h"

#include <cstdlib>
#include <cstring>

static llama_token token_of(const dqrelo_delta * delta, const char * key, llama_token of_base) {
    const char * text = dqrelo_meta_str(delta, key);
    // The loader has checked that the number is in the vocabulary.
    return text != nullptr ? (llama_token) std::strtol(text, nullptr, 10) : of_base;
}

static bool flag_of(const dqrelo_delta * delta, const char * key, bool of_base) {
    const char * text = dqrelo_meta_str(delta, key);
    return text != nullptr ? std::strcmp(text, "true") == 0 : of_base;
}

server_delta_vocab::server_delta_vocab(const llama_vocab * base) :
    base(base),
    bos(llama_vocab_bos(base)),
    eos(llama_vocab_eos(base)),
    add_bos(llama_vocab_get_add_bos(base)),
    add_eos(llama_vocab_get_add_eos(base)) {}

server_delta_vocab::server_delta_vocab(const llama_vocab * base, const dqrelo_delta * delta) :
    base(base),
    bos(token_of(delta, "tokenizer.ggml.bos_token_id", llama_vocab_bos(base))),
    eos(token_of(delta, "tokenizer.ggml.eos_token_id", llama_vocab_eos(base))),
    add_bos(flag_of(delta, "tokenizer.ggml.add_bos_token", llama_vocab_get_add_bos(base))),
    add_eos(flag_of(delta, "tokenizer.ggml.add_eos_token", llama_vocab_get_add_eos(base))) {}

bool server_delta_vocab::has_ends_of_base() const {
    return bos == llama_vocab_bos(base) && eos == llama_vocab_eos(base) && add_bos == llama_vocab_get_add_bos(base) &&
           add_eos == llama_vocab_get_add_eos(base);
}

llama_token llama_vocab_bos(const server_delta_vocab & vocab) {
    return vocab.bos;
}

llama_token llama_vocab_eos(const server_delta_vocab & vocab) {
    return vocab.eos;
}

bool llama_vocab_get_add_bos(const server_delta_vocab & vocab) {
    return vocab.add_bos;
}

bool llama_vocab_get_add_eos(const server_delta_vocab & vocab) {
    return vocab.add_eos;
}

std::vector<llama_token> common_tokenize(const server_delta_vocab & vocab, const std::string & text, bool add_special, bool parse_special) {
    const bool as_base = vocab.has_ends_of_base();
    auto       tokens  = common_tokenize(vocab.base, text, add_special && as_base, parse_special);
    if (add_special && !as_base) {
        if (vocab.add_bos && vocab.bos != LLAMA_TOKEN_NULL) {
            tokens.insert(tokens.begin(), vocab.bos);
        }
        if (vocab.add_eos && vocab.eos != LLAMA_TOKEN_NULL) {
            tokens.push_back(vocab.eos);
        }
    }
    return tokens;
}
