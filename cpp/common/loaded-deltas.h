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

// What a context's graphs read of a delta.
struct dqrelo_applied {
    int32_t n_applied = 0;
    int32_t n_inert   = 0;
};

// Returns whether --load-mode asks for deltas to be mapped: by name only, its default reads them into memory.
bool dqrelo_use_mmap(const common_params & params);

// Checks a delta against the context's graphs, on the thread that decodes. False with one line in `err`, also where nothing of it would
// apply.
bool dqrelo_check_applies(dqrelo_delta * delta, llama_context * ctx, dqrelo_applied & applied, std::string & err);

// The log line of a delta that can serve.
void dqrelo_log_loaded(const std::string & name, const dqrelo_delta * delta, const dqrelo_applied & applied, double ms);

// An error line after which the program ends: it is flushed, the log's own thread may otherwise not get to it.
void dqrelo_log_last_words(const std::string & name, const std::string & err);

// For programs without model names: the only delta, bound to every sequence of a context. Must go before the context does.
class dqrelo_single_delta {
public:
    dqrelo_single_delta() = default;
    ~dqrelo_single_delta();
    dqrelo_single_delta(const dqrelo_single_delta &)             = delete;
    dqrelo_single_delta & operator=(const dqrelo_single_delta &) = delete;

    // Loads and binds the delta of `params`, if there is one. Its chat template and end tokens go into `params` (a template of the command
    // line wins). `sampler`, where given, is replaced when those tokens differ from the vocabulary's; it stays this object's. Returns false
    // after an error line.
    bool init(common_params & params, llama_context * ctx, common_sampler ** sampler = nullptr);

private:
    llama_context *  ctx     = nullptr;
    dqrelo_delta *   delta   = nullptr;
    common_sampler * sampler = nullptr;
};
