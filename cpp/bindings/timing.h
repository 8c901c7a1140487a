// timing.h: how long prompts and generated tokens take, measured the way llama-bench measures them.
#pragma once

#include "batch.h"

#include <cstdint>
#include <vector>

struct timing_params {
    // Counts the tokens of each stream's prompt, which runs in pieces of the context's n_batch. The logits of a piece's last token are
    // computed.
    size_t n_prompt;
    // Counts the steps after the prompts. A step is one token of every stream, all in one batch.
    size_t n_gen;
    // Counts the CPU threads, which wait for work between the graphs.
    int32_t n_threads;
    // Seeds the tokens, which are random but for BOS where the model begins with it.
    uint32_t seed;
};

// Returns the nanoseconds that the prompts, one after another, and then the steps take. Stream i runs on blends[i] (no part: the base).
// Only decoding is on the clock: not the choice of tokens, not `check`, nor an untimed first step where there are no prompts, so that the
// steps measured find their graph built. The context's memory is empty and nothing is bound before and after.
uint64_t time_streams(llama_context * ctx, const std::vector<blend> & blends, const timing_params & params, const check_fn & check);
