#include "batch.h"

#include "log.h"

#include <algorithm>

namespace {

// A job that has a sequence id.
struct active_job {
    job *        item;
    llama_seq_id seq_id;
    size_t       n_fed; // Tokens that are evaluated so far.
};

// Which position of which job a row of the batch belongs to.
struct output_row {
    job *        item;
    llama_seq_id seq_id;
    size_t       pos;
    int32_t      i_batch;
};

std::string text_of(const blend & parts) {
    std::string text;
    for (const auto & [delta, scale] : parts) {
        text += (text.empty() ? "delta '" : ", delta '") + delta->name + "' times scale " + std::to_string(scale);
    }
    return text;
}

class runner {
public:
    runner(llama_context * ctx, bool kv_unified) :
        ctx(ctx), kv_unified(kv_unified), n_batch((int32_t) llama_n_batch(ctx)), batch(llama_batch_init(n_batch, 0, 1)) {
        for (llama_seq_id id = (llama_seq_id) llama_n_seq_max(ctx) - 1; id >= 0; --id) {
            free_ids.push_back(id);
            if (!dqrelo_is_finite(ctx, id, -1)) { // time_streams may have left this behind.
                dqrelo_forget(ctx, id);
            }
        }
        llama_memory_clear(llama_get_memory(ctx), false);
    }

    ~runner() {
        const bool was_stopped = !active.empty(); // Only an exception leaves jobs behind, and then the memory may hold anything.
        while (!active.empty()) {
            release(active.size() - 1);
        }
        if (was_stopped) {
            forget_all(ctx);
        }
        llama_memory_clear(llama_get_memory(ctx), false);
        llama_batch_free(batch);
    }

    runner(const runner &)             = delete;
    runner & operator=(const runner &) = delete;

    // Returns how many tokens were evaluated.
    size_t run(const std::vector<job *> & jobs, const check_fn & check) {
        size_t i_next      = 0;
        size_t n_evaluated = 0;
        while (i_next < jobs.size() || !active.empty()) {
            while (i_next < jobs.size() && (!jobs[i_next]->is_wanted() || admit(jobs[i_next]))) {
                i_next++;
            }
            if (active.empty()) { // None of the rest was wanted.
                break;
            }
            check();
            fill();
            decode_batch(ctx, batch);
            n_evaluated += (size_t) batch.n_tokens;
            check_finite();
            for (const output_row & row : rows) {
                row.item->on_row(row.pos, llama_get_logits_ith(ctx, row.i_batch));
            }
            for (size_t i = active.size(); i-- > 0;) {
                if (active[i].n_fed == active[i].item->tokens.size() && !go_on(active[i])) {
                    release(i);
                }
            }
        }
        return n_evaluated;
    }

private:
    // Returns false if the job has to wait for another to end. A job alone always fits: the session checks its size.
    bool admit(job * item) {
        const bool has_cells = !kv_unified || active.empty() || n_cells_used + item->n_cells <= llama_n_ctx(ctx);
        if (free_ids.empty() || !has_cells) {
            return false;
        }
        const llama_seq_id seq_id = free_ids.back();
        bind_parts(ctx, seq_id, item->parts);
        free_ids.pop_back();
        n_cells_used += item->n_cells;
        active.push_back({ item, seq_id, 0 });
        return true;
    }

    // Returns false if the job has no further tokens.
    bool go_on(active_job & cur) const {
        size_t n_kept = 0;
        if (!cur.item->go_on(n_kept)) {
            return false;
        }
        llama_memory_t mem = llama_get_memory(ctx);
        if (!llama_memory_seq_rm(mem, cur.seq_id, (llama_pos) n_kept, -1) || !has_window(cur.seq_id, n_kept)) {
            llama_memory_seq_rm(mem, cur.seq_id, -1, -1);
            n_kept = 0;
        }
        cur.n_fed = n_kept;
        return true;
    }

    // Returns true if all positions are there that the token at `pos` attends to: sliding windows drop those that they have passed.
    bool has_window(llama_seq_id seq_id, size_t pos) const {
        const auto n_swa   = (size_t) llama_model_n_swa(llama_get_model(ctx));
        const auto pos_min = llama_memory_seq_pos_min(llama_get_memory(ctx), seq_id);
        return pos_min == 0 || (pos_min > 0 && (size_t) pos_min + n_swa <= pos);
    }

    void release(size_t i) {
        const active_job done = active[i];
        active.erase(active.begin() + (ptrdiff_t) i);
        llama_memory_seq_rm(llama_get_memory(ctx), done.seq_id, -1, -1);
        bind_parts(ctx, done.seq_id, {});
        n_cells_used -= done.item->n_cells;
        free_ids.push_back(done.seq_id);
    }

    void check_finite() const {
        const auto fail = [](const job & item) {
            throw input_error("sequence " + std::to_string(item.number) + ": its logits are NaN or infinite" +
                              (item.parts.empty() ? ". Is the model's file damaged?"
                                                  : ": the weights of " + text_of(item.parts) + " are too large for this model"));
        };
        for (const active_job & cur : active) {
            if (cur.item->has_logits() && !dqrelo_is_finite(ctx, cur.seq_id, -1)) {
                fail(*cur.item);
            }
        }
        for (const output_row & row : rows) {
            if (row.item->has_logits() && !dqrelo_is_finite(ctx, row.seq_id, row.i_batch)) {
                fail(*row.item);
            }
        }
    }

    // The next tokens of the active jobs, in order, until the batch is full.
    void fill() {
        batch.n_tokens = 0;
        rows.clear();
        for (active_job & cur : active) {
            const std::vector<llama_token> & tokens = cur.item->tokens;
            while (cur.n_fed < tokens.size() && batch.n_tokens < n_batch) {
                const size_t  pos       = cur.n_fed++;
                const bool    is_output = pos >= cur.item->first_output;
                const int32_t i_batch   = batch_add(batch, tokens[pos], (llama_pos) pos, cur.seq_id, is_output);
                if (is_output) {
                    rows.push_back({ cur.item, cur.seq_id, pos, i_batch });
                }
            }
        }
    }

    llama_context *           ctx;
    const bool                kv_unified; // All sequences share n_ctx cells; otherwise each has its own.
    const int32_t             n_batch;
    llama_batch               batch;
    std::vector<llama_seq_id> free_ids; // The lowest is taken first.
    std::vector<active_job>   active;
    std::vector<output_row>   rows;
    size_t                    n_cells_used = 0;
};

} // namespace

int32_t batch_add(llama_batch & batch, llama_token token, llama_pos pos, llama_seq_id seq_id, bool is_output) {
    const int32_t i    = batch.n_tokens++;
    batch.token[i]     = token;
    batch.pos[i]       = pos;
    batch.n_seq_id[i]  = 1;
    batch.seq_id[i][0] = seq_id;
    batch.logits[i]    = is_output;
    return i;
}

void decode_batch(llama_context * ctx, const llama_batch & batch) {
    log_clear();
    const int32_t status = llama_decode(ctx, batch);
    if (status == 1) {
        throw input_error("llama_decode: no room in the context's memory for " + std::to_string(batch.n_tokens) + " more tokens (n_ctx " +
                          std::to_string(llama_n_ctx(ctx)) + "). Use a larger n_ctx");
    }
    if (status != 0) {
        throw input_error("llama_decode: " + log_first_error("failed with status " + std::to_string(status)));
    }
}

void forget_all(llama_context * ctx) {
    for (llama_seq_id seq_id = 0; seq_id < (llama_seq_id) llama_n_seq_max(ctx); ++seq_id) {
        dqrelo_forget(ctx, seq_id);
    }
    llama_memory_clear(llama_get_memory(ctx), true);
}

size_t run_jobs(llama_context * ctx, bool kv_unified, const std::vector<job *> & jobs, const check_fn & check) {
    return runner(ctx, kv_unified).run(jobs, check);
}
