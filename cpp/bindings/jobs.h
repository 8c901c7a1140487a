// jobs.h: what is done with the logits of a sequence: kept, scored, or sampled from.
#pragma once

#include "batch.h"
#include "input-tap.h"

#include <cstdint>
#include <string>

// Keeps the rows from first_output on. out: [n_tokens - first_output, n_vocab], owned by the caller.
class logits_job : public job {
public:
    logits_job(float * out, int32_t n_vocab) : out(out), n_vocab(n_vocab) {}
    void on_row(size_t pos, const float * row) override;

private:
    float * out;
    int32_t n_vocab;
};

// Runs a sequence for what its graphs do on the way.
class job_without_output : public job {
public:
    explicit job_without_output(const input_tap & tap) : tap(tap) {}

    void on_row(size_t /*pos*/, const float * /*row*/) override {}
    bool has_logits() const override { return !tap.has_ended(); }

private:
    const input_tap & tap;
};

// A continuation of a context: its tokens, and what was found out about them.
struct continuation {
    std::vector<llama_token> targets;
    double                   sum       = 0.0;  // of their log-probabilities
    bool                     is_greedy = true; // Every target is the most probable token.
};

// Scores continuations of one context, which is evaluated once. `tokens` holds the context, and gets those of a continuation but its last.
class score_job : public job {
public:
    score_job(size_t n_context, int32_t n_vocab) : n_context(n_context), n_vocab(n_vocab) {}

    // Adds a continuation, at least one before the job runs. Returns the tokens that the job has to hold for it.
    size_t add(std::vector<llama_token> targets);

    void on_row(size_t pos, const float * row) override;
    bool go_on(size_t & n_kept) override;

    std::vector<continuation> continuations;

private:
    void begin(size_t i);

    size_t  n_context;
    int32_t n_vocab;
    size_t  i_cur = 0; // the continuation that is evaluated
};

struct generate_params {
    int32_t                  max_tokens  = 128;
    float                    temperature = 0.0f; // 0 takes the most probable token.
    int32_t                  top_k       = 0;    // 0 keeps all tokens.
    float                    top_p       = 1.0f; // 1 keeps all tokens.
    uint32_t                 seed        = 0;
    std::vector<std::string> stop;
};

struct sampler_deleter {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

struct generated {
    // The text is UTF-8 bytes, and may end inside a character if max_tokens cut it.
    std::string text;
    // The end token is left out. A stop text may have cut the text of the last tokens.
    std::vector<llama_token> tokens;
};

// Called with the index of a sequence that has ended, and how many tokens it got. Returns false where that is enough: those that run end
// as they are, and no other one begins.
using ended_fn = std::function<bool(size_t number, size_t n_tokens)>;

// What the jobs of one call share.
struct generation {
    generation(const llama_vocab * vocab, ended_fn ended);

    const llama_vocab *           vocab;
    ended_fn                      ended;
    bool                          goes_on = true;
    std::vector<llama_token_data> candidates; // [n_vocab], to draw from
};

// Appends tokens until an end-of-generation token of the delta (or the base, where the delta names none), a stop text, or max_tokens.
class generate_job : public job {
public:
    generate_job(generation & all, const generate_params & params);
    void on_row(size_t pos, const float * row) override;
    bool is_wanted() const override { return all.goes_on; }

    generated result;

private:
    bool        append(llama_token token);
    llama_token sample(const float * row);
    bool        is_end(llama_token token) const;
    bool        cut_at_stop(size_t n_before);

    generation &                                    all;
    generate_params                                 params;
    std::unique_ptr<llama_sampler, sampler_deleter> sampler; // NULL takes the most probable token.
};

// Returns the text of one token, as bytes. Control tokens have none unless `special`.
std::string token_piece(const llama_vocab * vocab, llama_token token, bool special);
