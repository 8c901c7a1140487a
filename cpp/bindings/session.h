// session.h: one base model with one context, and the deltas loaded for it. What the Python class Runtime drives.
#pragma once

#include "input-tap.h"
#include "jobs.h"
#include "process.h"
#include "timing.h"

#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

struct session_params {
    uint32_t    n_ctx        = 4096; // tokens in the context's memory, or 0 for the model's own number
    uint32_t    n_batch      = 2048; // tokens in one llama_decode
    uint32_t    n_ubatch     = 512;  // tokens in one graph
    uint32_t    n_seq_max    = 8;    // sequences evaluated together
    int32_t     n_threads    = 0;    // 0 is llama.cpp's default.
    int32_t     n_gpu_layers = -1;   // -1 is all of them.
    std::string flash_attn   = "auto";
    std::string type_k       = "f16";
    std::string type_v       = "f16";
    bool        use_mmap     = true;
    bool        repack       = true;  // The CPU may use its repacked weight layouts.
    bool        kv_unified   = true;  // Sequences share the memory; otherwise each has n_ctx / n_seq_max.
    bool        watch        = false; // visit_inputs() can be called; every node is computed by itself then. See make_context().
    bool        verbose      = false;
};

// A sequence to evaluate.
struct sequence {
    std::vector<llama_token> tokens;
    blend                    parts;
};

// Thread-safe: calls that use the context wait for each other. Errors are input_error.
class session {
public:
    session(const std::string & path, const session_params & params);
    ~session();
    session(const session &)             = delete;
    session & operator=(const session &) = delete;

    // Frees the deltas, the context and the model, once no call runs. Calls after it throw.
    void close();
    bool is_closed() const { return !is_open; }

    // Running calls end between two batches with an input_error, as do later ones. Does not wait.
    void stop() { is_stopping = true; }

    // Loads a delta and checks that the graphs of this context can carry all of it.
    std::shared_ptr<loaded_delta> load_delta(const std::string & path, dqrelo_load_params params);

    // With `add_special`, BOS and EOS are added as the model asks for them, or as `owner`'s file says, where it says so.
    std::vector<llama_token> tokenize(const std::string & text, bool add_special, bool parse_special, const loaded_delta * owner);

    // With `special`, the text has control tokens too.
    std::string detokenize(const std::vector<llama_token> & tokens, bool special);

    // Returns the token that stands before an empty context: BOS, or EOS where there is none.
    llama_token prefix_token(const loaded_delta * owner);

    // Writes the logits of sequence i after its tokens from firsts[i] on, [n_tokens of the sequence - firsts[i], n_vocab], to outs[i].
    void logits(const std::vector<sequence> & seqs, const std::vector<size_t> & firsts, const std::vector<float *> & outs,
                const check_fn & check);

    // Of each sequence, tokens from n_context[i] on are scored: the sum of log P(token | all before), and whether each was the most
    // probable. A context is evaluated once for all sequences that follow each other and have it.
    std::vector<std::pair<double, bool>> score(const std::vector<sequence> & seqs, const std::vector<size_t> & n_context,
                                               const check_fn & check);

    // Continues each sequence. Sequence i draws with seed + i.
    std::vector<generated> generate(const std::vector<sequence> & seqs, const generate_params & params, const ended_fn & ended,
                                    const check_fn & check);

    // Runs the sequences, and shows what the weights of these names multiply. Returns the weights that read the same rows as another one,
    // with that one's name; only the latter's rows are shown. With points, the sequences of graph i go on from point i (resume-point.h),
    // and leave there where the first of the weights is multiplied; none are given the first time.
    std::unordered_map<std::string, std::string> visit_inputs(const std::vector<sequence> & seqs, const std::vector<std::string> & names,
                                                              const input_tap::visit_fn & visit, std::vector<resume_point> * points,
                                                              const check_fn & check);

    // Overwrites a weight of n numbers, in F32, F16 or BF16. The model must not be mapped.
    void set_weight(const std::string & name, const float * values, size_t n);

    // Returns the nanoseconds that streams on these deltas take (timing.h).
    uint64_t time_streams(const std::vector<blend> & blends, const timing_params & params, const check_fn & check);

    std::string path;
    std::string description;   // Names the model's architecture, size and type.
    std::string chat_template; // Belongs to the base, and is empty if the base has none.
    int32_t     n_vocab, n_ctx_train, n_embd, n_layer;
    uint32_t    n_ctx, n_batch, n_ubatch, n_seq_max;
    int32_t     n_threads;
    uint64_t    n_bytes, n_params; // Count the model's tensors.
    // Tokens that finished calls have evaluated, written under the lock of the calls.
    std::atomic<uint64_t> n_evaluated{ 0 };

private:
    void                            load_model(const session_params & params);
    void                            make_context(const session_params & params);
    void                            read_facts();
    void                            require_open() const;
    void                            run(const std::vector<job *> & jobs, const check_fn & check);
    void                            check_sequence(const sequence & seq, size_t i, size_t n_new) const;
    void                            check_parts(const blend & parts, const std::string & where) const;
    std::vector<std::vector<job *>> in_graphs(const std::vector<job *> & jobs) const;
    void prepare_points(std::vector<resume_point> & points, const std::vector<std::vector<job *>> & graphs) const;
    void prepare(job & item, const sequence & seq, size_t i, size_t n_new) const;

    std::mutex                   mutex; // Guards the model and the context.
    std::atomic<bool>            is_open{ true };
    std::atomic<bool>            is_stopping{ false };
    const process                owner; // A forked child has none of the threads, and must not wait for its locks.
    std::shared_ptr<live_deltas> live;
    llama_model *                model = nullptr;
    dqrelo_base *                base  = nullptr; // the file that the model was loaded from; NULL with the reason in base_error
    std::string                  base_error;
    llama_context *              ctx   = nullptr;
    const llama_vocab *          vocab = nullptr;
    std::unique_ptr<input_tap>   tap; // NULL unless the session watches.
    const bool                   kv_unified;
    const bool                   is_mapped;
};
