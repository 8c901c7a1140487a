// batch.h: runs many sequences, each with its own delta or none, through one context in shared batches.
#pragma once

#include "loaded-delta.h"
#include "llama.h"

#include <functional>
#include <memory>
#include <vector>

// One sequence to evaluate.
class job {
public:
    virtual ~job() = default;

    // Called for each position from first_output on, in order. row: [n_vocab] logits after tokens[pos].
    // May append to `tokens`, which keeps the sequence alive; it ends when all of its tokens were evaluated.
    virtual void on_row(size_t pos, const float * row) = 0;

    // Called when all of its tokens were evaluated. May give the sequence other tokens from n_kept on, and returns true if it did; those
    // before are not evaluated again, if the model's memory can go back to there.
    virtual bool go_on(size_t & /*n_kept*/) { return false; }

    // Returns false if the job, which has not begun, needs not run any more.
    virtual bool is_wanted() const { return true; }

    // Returns false after a batch whose graph ended before the logits: nothing of it is looked through for numbers that are not finite.
    virtual bool has_logits() const { return true; }

    std::vector<llama_token> tokens;
    blend                    parts;
    size_t                   number       = 0; // Its index in the caller's list.
    size_t                   first_output = 0;
    size_t                   n_cells      = 0; // Counts the cells of the context's memory that the job may come to need.
};

// Called before each llama_decode; may throw to stop the run.
using check_fn = std::function<void()>;

// Puts a token into a batch that has room for it, and returns its row. is_output: its logits are wanted.
int32_t batch_add(llama_batch & batch, llama_token token, llama_pos pos, llama_seq_id seq_id, bool is_output);

// Calls llama_decode, and throws input_error where that fails.
void decode_batch(llama_context * ctx, const llama_batch & batch);

// Empties the context's memory, data and all.
void forget_all(llama_context * ctx);

// Runs the jobs that are wanted to their ends. As many at a time as the context has sequence ids and memory for, in the order given; the
// next one starts as soon as another ends. The context's memory is empty and nothing is bound before and after, also when this throws.
// Throws input_error where a sequence's numbers are not finite. Returns how many tokens were evaluated.
size_t run_jobs(llama_context * ctx, bool kv_unified, const std::vector<job *> & jobs, const check_fn & check);
