// loaded-deltas.h: the deltas of the command line, loaded for one model and context.
#pragma once

#include "delta-options.h"
#include "dqrelo.h"
#include "eog.h"

#include <string>
#include <vector>

struct common_params;
struct common_sampler;

// End tokens of a delta; empty where they are the vocabulary's.
dqrelo_eog dqrelo_eog_of(const dqrelo_delta * delta, const llama_vocab * vocab);

// The text of a token id that the delta's metadata holds under `key`; empty where it has none.
std::string dqrelo_token_text(const dqrelo_delta * delta, const llama_vocab * vocab, const char * key);

// Loads one delta, checks it against the context's graphs and logs one line about it, or one error line; NULL on failure.
dqrelo_delta * dqrelo_load_logged(const dqrelo_delta_source & source, const common_params & params, llama_context * ctx);

// For programs without model names: the only delta, bound to every sequence of a context. Must go before the context does.
class dqrelo_single_delta {
public:
    dqrelo_single_delta() = default;
    ~dqrelo_single_delta();
    dqrelo_single_delta(const dqrelo_single_delta &)             = delete;
    dqrelo_single_delta & operator=(const dqrelo_single_delta &) = delete;

    // Loads and binds the delta of `params`, if there is one. Its chat template and end tokens go into `params` (a template of the command line wins).
    // `sampler`, where given, is replaced when those tokens differ from the vocabulary's; it stays this object's. Returns false after an error line.
    bool init(common_params & params, llama_context * ctx, common_sampler ** sampler = nullptr);

private:
    llama_context *  ctx     = nullptr;
    dqrelo_delta *   delta   = nullptr;
    common_sampler * sampler = nullptr;
};
