// dqrelo.h: serve many fine-tunes of one base model from one llama.cpp model.
//
// A delta is what a fine-tune changed over its base (docs/format.md). It is loaded for a model, and bound, with a scale,
// to sequence ids of a context. Rows of a batch whose sequence has no delta run the base.
//
// Thread safety: loading, freeing and querying deltas of one model may happen on any thread, beside decoding.
// Binding belongs to the thread that calls llama_decode on that context.
#pragma once

#include "llama.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DQRELO_MAX_SCALE 4.0f
#define DQRELO_MAX_PARTS 8 // deltas that one sequence may have at the same time

struct dqrelo_delta; // A loaded delta belongs to one model. The caller owns it.
struct dqrelo_base;  // Tells what a base model's file says about its identity. The caller owns it.
struct dqrelo_file;  // A delta's file was read and checked, for no model yet. The caller owns it.

struct dqrelo_load_params {
    bool  allow_other_base_bytes; // Accept another quantisation of the delta's base (default false: refuse it).
    bool  verify;                 // Works as in dqrelo_file_params (default false).
    bool  use_mmap;               // Map the file instead of reading it into memory, as in dqrelo_file_params (default false).
    float max_scale;              // Bounds the absolute value of a scale that dqrelo_bind takes (default DQRELO_MAX_SCALE).
    // As in dqrelo_file_params, while the signs of an opened file are put into the sequence in which the CPU takes them.
    ggml_abort_callback decode_callback;
    void *              decode_callback_data;
};

LLAMA_API struct dqrelo_load_params dqrelo_load_default_params(void);

// Loads the delta at `path` for `model`. Its content hash, by which caches know what computed them, is checked against its bytes.
// `path_model` is the file that the model was loaded from (the first shard, if it is split): the base's identity is computed from it.
// Returns NULL on failure, with one line that says what is wrong in `err` (always terminated, at most n_err bytes).
LLAMA_API struct dqrelo_delta * dqrelo_load(const struct llama_model * model, const char * path_model, const char * path,
                                            struct dqrelo_load_params params, char * err, size_t n_err);

// The same in three steps, for a program that loads more than one delta, or that may not wait for a file system that does not answer.

// Opens the base's file (all shards of a split one), as it is when the model is loaded from it: what lies under the path later does not
// count. It stays mapped: it may be renamed or removed, but not written into. Returns NULL with one line in `err` on failure.
LLAMA_API struct dqrelo_base * dqrelo_base_open(const char * path_model, char * err, size_t n_err);
LLAMA_API void                 dqrelo_base_free(struct dqrelo_base * base);

struct dqrelo_file_params {
    bool header_only; // Read nothing behind the header: that is enough for dqrelo_file_bytes_needed only (default false).
    bool verify;      // Check the digests even if this process has checked those of this very file before (default false).
    // Map the file instead of reading it into memory. A mapped file takes no memory that the system could not take back, and two processes
    // share it; but one that is shortened or written into while it serves ends the process or changes what it computes (default false).
    bool use_mmap;
    // Called every few MiB, if set; true ends the reading as a failure.
    ggml_abort_callback abort_callback;
    void *              abort_callback_data;
    // Called all the time, on any thread, if set; true says that other threads decode. Where they want the cores that reading and checking
    // have, these leave them for three quarters of the time (on Linux only).
    ggml_abort_callback decode_callback;
    void *              decode_callback_data;
    // The model that the file will be loaded for lies in the CPU's memory (dqrelo_on_cpu): signs are put into the sequence in which the CPU
    // takes them beside the reading, and not afterwards (default false).
    bool on_cpu;
};

LLAMA_API struct dqrelo_file_params dqrelo_file_default_params(void);

// Returns whether all weights of a model lie in the CPU's memory.
LLAMA_API bool dqrelo_on_cpu(const struct llama_model * model);

// Reads the delta file at `path`; all file I/O of a load is here. Its content hash, by which caches know what computed them, is checked
// against its bytes. Returns NULL with one line in `err` on failure.
LLAMA_API struct dqrelo_file * dqrelo_file_open(const char * path, struct dqrelo_file_params params, char * err, size_t n_err);
LLAMA_API void                 dqrelo_file_free(struct dqrelo_file * file);

// Returns what all memories together will hold of the file once it is loaded for `model`.
LLAMA_API size_t dqrelo_file_bytes_needed(const struct llama_model * model, const struct dqrelo_file * file);

// Loads an opened file, which is taken over, also on failure. `params`: but for verify and use_mmap, with which the file was opened.
LLAMA_API struct dqrelo_delta * dqrelo_load_opened(const struct llama_model * model, const struct dqrelo_base * base,
                                                   struct dqrelo_file * file, struct dqrelo_load_params params, char * err, size_t n_err);

// Frees a delta. Returns false, and frees nothing, while it is bound to a sequence of any context.
LLAMA_API bool dqrelo_free(struct dqrelo_delta * delta);

// From here on, with true, the memory of one freed delta waits for the next file of about its size, so that it need not be cleared for it.
// With false nothing is kept. For who frees one delta to load another.
LLAMA_API void dqrelo_keep_memory(bool keep);

// These functions say what a delta is. Strings live as long as the delta; NULL where the file has none.
LLAMA_API const char * dqrelo_name(const struct dqrelo_delta * delta); // Returns general.name.
LLAMA_API const char * dqrelo_path(const struct dqrelo_delta * delta);
LLAMA_API const char * dqrelo_content_hash(const struct dqrelo_delta * delta);               // 64 hex digits, verified
LLAMA_API const char * dqrelo_chat_template(const struct dqrelo_delta * delta);              // Returns NULL for the base's.
LLAMA_API const char * dqrelo_meta_str(const struct dqrelo_delta * delta, const char * key); // Returns a scalar of the metadata as text.
// Lists the quality record that dqrelo-eval wrote into the file (docs/format.md, section 8): the name of field i, or NULL behind the last.
// `value` becomes its text, or NULL where the file has none; `is_text` says whether it is a text rather than a number.
LLAMA_API const char * dqrelo_quality(const struct dqrelo_delta * delta, int32_t i, const char ** value, bool * is_text);
// Returns false where the model is another quantisation of the delta's base.
LLAMA_API bool   dqrelo_same_base_file(const struct dqrelo_delta * delta);
LLAMA_API double dqrelo_ratio(const struct dqrelo_delta * delta); // bytes / (2 x elements)
// Counts the bytes of all tensors in the file.
LLAMA_API size_t dqrelo_n_bytes(const struct dqrelo_delta * delta);
// Counts the base's tensors that the delta changes.
LLAMA_API int32_t dqrelo_n_weights(const struct dqrelo_delta * delta);
LLAMA_API int32_t dqrelo_n_bound(const struct dqrelo_delta * delta); // Counts the sequences that it is bound to, over all contexts.
// Writes up to n_max ids of the end-of-generation tokens under the fine-tune: those of its file's list, or, where it has none, as a merged
// model would have them: those that its keys name, and the vocabulary's. Returns how many there are; 0: the file names none, the
// vocabulary's apply.
LLAMA_API int32_t dqrelo_eog_tokens(const struct dqrelo_delta * delta, llama_token * ids, int32_t n_max);

// Lists the memories that a loaded delta lies in: the name of memory i ("CPU": pages of the mapped file; else as ggml calls a device's
// memory) and its bytes, or NULL behind the last.
LLAMA_API const char * dqrelo_memory(const struct dqrelo_delta * delta, int32_t i, size_t * n_bytes);

// Binds `delta` (NULL: the base) to a sequence of a context; `scale` multiplies the whole delta (1: the fine-tune), is finite and at most
// the delta's max_scale: a large one makes a model's numbers overflow. Takes effect with the next llama_decode. What the sequence's memory
// (KV cache) holds stays as it was computed: clear it if it came from another delta. The first bind of a delta to a context checks that
// every weight it changes is read by that context's graphs in a supported form. Returns false with one line in `err` when that fails, or
// there is no memory for it.
LLAMA_API bool dqrelo_bind(struct llama_context * ctx, llama_seq_id seq_id, struct dqrelo_delta * delta, float scale, char * err,
                           size_t n_err);

// One delta of a blend, and how much of it: base + scale_0 * D_hat_0 + scale_1 * D_hat_1 + ...
struct dqrelo_part {
    struct dqrelo_delta * delta; // not NULL
    float                 scale; // as in dqrelo_bind; a negative one takes away what the fine-tune learned
};

// Binds a blend, n_parts (0 to DQRELO_MAX_PARTS; 0 is the base) different deltas, to a sequence in place of what it has. As dqrelo_bind
// otherwise. The parts are added in an order of their own, so the numbers do not depend on the order given.
LLAMA_API bool dqrelo_bind_parts(struct llama_context * ctx, llama_seq_id seq_id, const struct dqrelo_part * parts, size_t n_parts,
                                 char * err, size_t n_err);

// Returns whether a delta that was bound to the context, or checked, changes a weight that is read for all tokens of a batch at once
// (attention sinks, convolutions and scans of recurrent layers). llama_decode then splits a batch so that its tokens share no ubatch with
// those of other deltas, of the base, or of another scale: right, but slower than a shared one. llama_encode, which does not split, refuses
// such a mixed batch.
LLAMA_API bool dqrelo_needs_own_batch(const struct llama_context * ctx, const struct dqrelo_delta * delta);

// Returns whether what a sequence computed is finite, as far as llama_decode saw: false where a token of it was NaN or infinite in a batch
// with deltas, and, with i_output >= 0, where the logits or the embedding of that token of the last batch have a NaN or an infinity that is
// not a ban (-infinity). What a sequence computes then says nothing: give no answer from it, and call dqrelo_forget. Other sequences of its
// batches are not harmed.
LLAMA_API bool dqrelo_is_finite(struct llama_context * ctx, llama_seq_id seq_id, int32_t i_output);

// Removes a sequence from the context's memory, as llama_memory_seq_rm, and zeroes the data of all cells that no sequence has (removing
// alone leaves it: attention multiplies cells that it must not see by 0, and 0 * NaN is NaN).
LLAMA_API void dqrelo_forget(struct llama_context * ctx, llama_seq_id seq_id);

// Returns delta i (from 0) of those bound to a sequence, in the order in which they are added, or NULL behind the last.
LLAMA_API const struct dqrelo_delta * dqrelo_bound(const struct llama_context * ctx, llama_seq_id seq_id, int32_t i);

// Finds out which weights the graphs of `ctx` read, unless that is known. Returns false with one line in `err` where they cannot be built.
LLAMA_API bool dqrelo_scan_graphs(struct llama_context * ctx, char * err, size_t n_err);

// Checks `delta` against the graphs of `ctx` without binding it (also done by the first bind). On success *n_applied is the number of
// weights that the graphs read and *n_inert the number that no graph of this context reads.
// From the end of dqrelo_scan_graphs on, or of the first check, it may be called on any thread beside what else is done with `ctx`.
LLAMA_API bool dqrelo_check(struct llama_context * ctx, struct dqrelo_delta * delta, int32_t * n_applied, int32_t * n_inert, char * err,
                            size_t n_err);

// Calls fn with each graph of the model that is built for a context from now on, as it will run. For what watches nodes
// by llama_context_params.cb_eval: a node does not know who reads it, the graph does.
LLAMA_API void dqrelo_watch_graphs(struct llama_context * ctx, void (*fn)(struct ggml_cgraph * graph, void * user), void * user);

// Says, from a cb_eval that returns false, that the graph ends there: its logits are not copied, and those that the context gives for its
// tokens are of no use.
LLAMA_API void dqrelo_end_graph(struct llama_context * ctx);

// Overwrites a weight of n numbers, as they lie in its rows, in F32, F16 or BF16. The model was loaded with LLAMA_LOAD_MODE_NONE: what is
// mapped cannot be written. Returns false if there is no such weight.
LLAMA_API bool dqrelo_set_weight(struct llama_model * model, const char * name, const float * values, size_t n);

// Returns the name of inert weight i (0 .. n_inert-1) found by dqrelo_check, or NULL.
LLAMA_API const char * dqrelo_inert_weight(const struct dqrelo_delta * delta, int32_t i);

#ifdef __cplusplus
}
#endif
