#include "session.h"

#include "log.h"

#include <algorithm>
#include <deque>
#include <thread>

namespace {

llama_flash_attn_type flash_attn_from(const std::string & text) {
    if (text == "auto") {
        return LLAMA_FLASH_ATTN_TYPE_AUTO;
    }
    if (text == "on") {
        return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    if (text == "off") {
        return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    throw input_error("flash_attn: got '" + text + "', expected auto, on or off");
}

ggml_type cache_type_from(const char * option, const std::string & text) {
    static const ggml_type types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                       GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 };
    std::string            names;
    for (const ggml_type type : types) {
        if (text == ggml_type_name(type)) {
            return type;
        }
        names += (names.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    throw input_error(std::string(option) + ": got '" + text + "', expected one of " + names);
}

// Returns a token id that a delta's file states, or the base's.
llama_token special_token(const loaded_delta * owner, const char * key, llama_token of_base) {
    const auto text = owner == nullptr ? std::nullopt : owner->meta(std::string("tokenizer.ggml.") + key + "_token_id");
    return text ? (llama_token) std::stol(*text) : of_base;
}

bool special_flag(const loaded_delta * owner, const char * key, bool of_base) {
    const auto text = owner == nullptr ? std::nullopt : owner->meta(std::string("tokenizer.ggml.") + key);
    return text ? *text == "true" : of_base;
}

std::vector<llama_token> tokenize_text(const llama_vocab * vocab, const std::string & text, bool add_special, bool parse_special) {
    std::vector<llama_token> tokens(text.size() + 2); // There is at most one token a byte, and BOS and EOS.
    int32_t                  n =
        llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(), add_special, parse_special);
    if (n < 0 && n != INT32_MIN) {
        tokens.resize((size_t) -n);
        n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(), add_special, parse_special);
    }
    if (n < 0) {
        throw input_error("tokenize: a text of " + std::to_string(text.size()) + " bytes is too long");
    }
    tokens.resize((size_t) n);
    return tokens;
}

bool has_same_context(const sequence & a, size_t n_context_a, const sequence & b, size_t n_context_b) {
    return n_context_a == n_context_b && a.parts == b.parts &&
           std::equal(a.tokens.begin(), a.tokens.begin() + (ptrdiff_t) n_context_a, b.tokens.begin());
}

} // namespace

session::session(const std::string & path, const session_params & params) :
    path(path), live(std::make_shared<live_deltas>()), kv_unified(params.kv_unified), is_mapped(params.use_mmap) {
    log_install(params.verbose);
    static const bool is_initialised = (llama_backend_init(), true);
    (void) is_initialised;
    try {
        load_model(params);
        make_context(params);
    } catch (...) {
        close();
        throw;
    }
    read_facts();
}

session::~session() {
    if (owner.is_this()) {
        close();
    }
}

void session::load_model(const session_params & params) {
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers       = params.n_gpu_layers;
    mparams.load_mode          = params.use_mmap ? LLAMA_LOAD_MODE_AUTO : LLAMA_LOAD_MODE_NONE;
    mparams.use_extra_bufts    = params.repack;
    log_clear();
    model = llama_model_load_from_file(path.c_str(), mparams);
    if (model == nullptr) {
        throw input_error(path + ": cannot be loaded as a model: " + log_first_error("see the log (verbose=True)"));
    }
    vocab          = llama_model_get_vocab(model);
    char err[1024] = "";
    base           = dqrelo_base_open(path.c_str(), err, sizeof(err)); // a model needs one only for deltas
    base_error     = err;
    if (!llama_model_has_decoder(model) || llama_model_has_encoder(model)) {
        throw input_error(path + ": is an encoder model, expected one that predicts the next token");
    }
}

void session::make_context(const session_params & params) {
    if (params.n_seq_max < 1 || params.n_seq_max > llama_max_parallel_sequences()) {
        throw input_error("n_seq_max: got " + std::to_string(params.n_seq_max) + ", expected 1 to " +
                          std::to_string(llama_max_parallel_sequences()));
    }
    const uint32_t n_cells = params.n_ctx > 0 ? params.n_ctx : (uint32_t) llama_model_n_ctx_train(model);
    if (n_cells < params.n_seq_max) { // llama.cpp would end the process.
        throw input_error("n_ctx: got " + std::to_string(n_cells) + ", expected a token for each of n_seq_max (" +
                          std::to_string(params.n_seq_max) + ") sequences at least");
    }
    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx                = params.n_ctx;
    // A batch of one token a sequence must fit.
    cparams.n_batch         = std::max({ params.n_batch, params.n_ubatch, params.n_seq_max });
    cparams.n_ubatch        = params.n_ubatch;
    cparams.n_seq_max       = params.n_seq_max;
    cparams.n_threads       = params.n_threads > 0 ? params.n_threads : (int32_t) std::max(1u, std::thread::hardware_concurrency());
    cparams.n_threads_batch = cparams.n_threads;
    cparams.flash_attn_type = flash_attn_from(params.flash_attn);
    cparams.type_k          = cache_type_from("type_k", params.type_k);
    cparams.type_v          = cache_type_from("type_v", params.type_v);
    cparams.kv_unified      = params.kv_unified;
    if (params.watch) {
        // Recurrent layers want sequences of one length in a graph, and each has a state.
        if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) {
            cparams.n_seq_max = 1;
        }
        tap                       = std::make_unique<input_tap>();
        cparams.cb_eval           = input_tap::on_node;
        cparams.cb_eval_user_data = tap.get();
    }
    log_clear();
    ctx = llama_init_from_model(model, cparams);
    if (ctx == nullptr) {
        throw input_error(path + ": no context could be made: " + log_first_error("see the log (verbose=True)"));
    }
    if (params.watch) {
        tap->attach(ctx);
    }
}

void session::read_facts() {
    char text[256];
    llama_model_desc(model, text, sizeof(text));
    description          = text;
    const char * of_base = llama_model_chat_template(model, nullptr);
    chat_template        = of_base == nullptr ? "" : of_base;
    n_vocab              = llama_vocab_n_tokens(vocab);
    n_ctx_train          = llama_model_n_ctx_train(model);
    n_embd               = llama_model_n_embd(model);
    n_layer              = llama_model_n_layer(model);
    n_ctx                = llama_n_ctx(ctx);
    n_batch              = llama_n_batch(ctx);
    n_ubatch             = llama_n_ubatch(ctx);
    n_seq_max            = llama_n_seq_max(ctx);
    n_threads            = llama_n_threads(ctx);
    n_bytes              = llama_model_size(model);
    n_params             = llama_model_n_params(model);
}

void session::close() {
    std::lock_guard<std::mutex> lock(mutex);
    {
        std::lock_guard<std::mutex> lock_live(live->mutex);
        for (loaded_delta * item : live->deltas) {
            if (item->handle != nullptr) {
                dqrelo_free(item->handle);
                item->handle = nullptr;
            }
        }
    }
    if (ctx != nullptr) {
        llama_free(ctx);
    }
    if (model != nullptr) {
        llama_model_free(model);
    }
    dqrelo_base_free(base);
    ctx     = nullptr;
    model   = nullptr;
    base    = nullptr;
    vocab   = nullptr;
    is_open = false;
}

// Jobs, until they end or are stopped.
void session::run(const std::vector<job *> & jobs, const check_fn & check) {
    n_evaluated += run_jobs(ctx, kv_unified, jobs, [&] {
        require_open();
        check();
    });
}

void session::require_open() const {
    if (is_stopping) {
        throw input_error("the runtime of " + path + " was stopped: the interpreter ends");
    }
    if (!is_open) {
        throw input_error("the runtime of " + path + " is closed");
    }
}

std::shared_ptr<loaded_delta> session::load_delta(const std::string & path_delta, dqrelo_load_params params) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    if (base == nullptr) {
        throw input_error(base_error);
    }
    char err[1024];
    auto file_params      = dqrelo_file_default_params();
    file_params.verify    = params.verify;
    file_params.on_cpu    = dqrelo_on_cpu(model);
    dqrelo_file *  file   = dqrelo_file_open(path_delta.c_str(), file_params, err, sizeof(err));
    dqrelo_delta * handle = file == nullptr ? nullptr : dqrelo_load_opened(model, base, file, params, err, sizeof(err));
    if (handle == nullptr) {
        throw input_error(err);
    }
    int32_t n_applied = 0;
    int32_t n_inert   = 0;
    if (!dqrelo_check(ctx, handle, &n_applied, &n_inert, err, sizeof(err))) {
        dqrelo_free(handle);
        throw input_error(err);
    }
    std::vector<std::string> inert;
    for (int32_t i = 0; i < n_inert; ++i) {
        inert.emplace_back(dqrelo_inert_weight(handle, i));
    }
    return std::make_shared<loaded_delta>(live, handle, std::move(inert));
}

std::vector<llama_token> session::tokenize(const std::string & text, bool add_special, bool parse_special, const loaded_delta * owner) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    const llama_token bos     = special_token(owner, "bos", llama_vocab_bos(vocab));
    const llama_token eos     = special_token(owner, "eos", llama_vocab_eos(vocab));
    const bool        add_bos = special_flag(owner, "add_bos_token", llama_vocab_get_add_bos(vocab));
    const bool        add_eos = special_flag(owner, "add_eos_token", llama_vocab_get_add_eos(vocab));

    const bool as_base = bos == llama_vocab_bos(vocab) && eos == llama_vocab_eos(vocab) && add_bos == llama_vocab_get_add_bos(vocab) &&
                         add_eos == llama_vocab_get_add_eos(vocab);
    std::vector<llama_token> tokens = tokenize_text(vocab, text, add_special && as_base, parse_special);
    if (add_special && !as_base) {
        if (add_bos && bos != LLAMA_TOKEN_NULL) {
            tokens.insert(tokens.begin(), bos);
        }
        if (add_eos && eos != LLAMA_TOKEN_NULL) {
            tokens.push_back(eos);
        }
    }
    return tokens;
}

std::string session::detokenize(const std::vector<llama_token> & tokens, bool special) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    const auto is_bad = [this](llama_token token) { return token < 0 || token >= n_vocab; };
    const auto bad    = std::find_if(tokens.begin(), tokens.end(), is_bad);
    if (bad != tokens.end()) {
        throw input_error("detokenize: token " + std::to_string(*bad) + " at " + std::to_string(bad - tokens.begin()) + ", expected 0 to " +
                          std::to_string(n_vocab - 1));
    }
    std::string text(tokens.size() * 8 + 16, '\0');
    int32_t     n = llama_detokenize(vocab, tokens.data(), (int32_t) tokens.size(), &text[0], (int32_t) text.size(), false, special);
    if (n < 0) {
        text.resize((size_t) -n);
        n = llama_detokenize(vocab, tokens.data(), (int32_t) tokens.size(), &text[0], (int32_t) text.size(), false, special);
    }
    text.resize((size_t) std::max(n, 0));
    return text;
}

llama_token session::prefix_token(const loaded_delta * owner) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    const llama_token bos = special_token(owner, "bos", llama_vocab_bos(vocab));
    return bos != LLAMA_TOKEN_NULL ? bos : special_token(owner, "eos", llama_vocab_eos(vocab));
}

// Checks sequence i. n_new: tokens that its job may append and evaluate.
void session::check_sequence(const sequence & seq, size_t i, size_t n_new) const {
    const std::string where = "sequence " + std::to_string(i) + ": ";
    if (seq.tokens.empty()) {
        throw input_error(where + "has no tokens, expected at least one");
    }
    const size_t n_max = llama_n_ctx_seq(ctx);
    if (seq.tokens.size() + n_new > n_max) {
        const std::string more = n_new > 0 ? " and " + std::to_string(n_new) + " to generate" : "";
        throw input_error(where + "has " + std::to_string(seq.tokens.size()) + " tokens" + more + ", the context holds " +
                          std::to_string(n_max) + ". Use a larger n_ctx");
    }
    for (size_t pos = 0; pos < seq.tokens.size(); ++pos) {
        if (seq.tokens[pos] < 0 || seq.tokens[pos] >= n_vocab) {
            throw input_error(where + "token " + std::to_string(seq.tokens[pos]) + " at " + std::to_string(pos) + ", expected 0 to " +
                              std::to_string(n_vocab - 1));
        }
    }
    check_parts(seq.parts, where);
}

// Throws if a part is not this session's; `where` begins the message.
void session::check_parts(const blend & parts, const std::string & where) const {
    for (const blend_part & part : parts) {
        if (!part.delta->belongs_to(live.get())) {
            throw input_error(where + "delta '" + part.delta->name + "' was loaded for another runtime");
        }
    }
}

// Checks sequence i and makes it the job's. n_new: tokens that the job may append and evaluate.
void session::prepare(job & item, const sequence & seq, size_t i, size_t n_new) const {
    check_sequence(seq, i, n_new);
    item.number  = i;
    item.tokens  = seq.tokens;
    item.parts   = seq.parts;
    item.n_cells = seq.tokens.size() + n_new;
}

void session::logits(const std::vector<sequence> & seqs, const std::vector<size_t> & firsts, const std::vector<float *> & outs,
                     const check_fn & check) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    std::vector<logits_job> items;
    std::vector<job *>      jobs;
    items.reserve(seqs.size());
    for (size_t i = 0; i < seqs.size(); ++i) {
        items.emplace_back(outs[i], n_vocab);
        prepare(items[i], seqs[i], i, 0);
        items[i].first_output = firsts[i];
        jobs.push_back(&items[i]);
    }
    run(jobs, check);
}

std::vector<std::pair<double, bool>> session::score(const std::vector<sequence> & seqs, const std::vector<size_t> & n_context,
                                                    const check_fn & check) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    std::deque<score_job> items; // Jobs stay where they are.
    std::vector<job *>    jobs;
    for (size_t i = 0; i < seqs.size(); ++i) {
        const std::vector<llama_token> & tokens = seqs[i].tokens;
        if (n_context[i] < 1 || n_context[i] >= tokens.size()) {
            throw input_error("pair " + std::to_string(i) + ": has " + std::to_string(n_context[i]) + " context tokens of " +
                              std::to_string(tokens.size()) + " in all, expected at least one of context and one of continuation");
        }
        if (i == 0 || !has_same_context(seqs[i - 1], n_context[i - 1], seqs[i], n_context[i])) {
            items.emplace_back(n_context[i], n_vocab);
            prepare(items.back(), seqs[i], i, 0);
            items.back().n_cells = 0;
            jobs.push_back(&items.back());
        } else {
            check_sequence(seqs[i], i, 0);
        }
        const size_t n_cells = items.back().add({ tokens.begin() + (ptrdiff_t) n_context[i], tokens.end() });
        items.back().n_cells = std::max(items.back().n_cells, n_cells);
    }
    run(jobs, check);

    std::vector<std::pair<double, bool>> result;
    for (const score_job & item : items) {
        for (const continuation & cur : item.continuations) {
            result.emplace_back(cur.sum, cur.is_greedy);
        }
    }
    return result;
}

std::vector<generated> session::generate(const std::vector<sequence> & seqs, const generate_params & params, const ended_fn & ended,
                                         const check_fn & check) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    generation                all(vocab, ended);
    std::vector<generate_job> items;
    std::vector<job *>        jobs;
    items.reserve(seqs.size());
    for (size_t i = 0; i < seqs.size(); ++i) {
        generate_params own = params;
        own.seed += (uint32_t) i;
        items.emplace_back(all, own);
        // The last token generated is never evaluated.
        prepare(items[i], seqs[i], i, (size_t) params.max_tokens - 1);
        items[i].first_output = seqs[i].tokens.size() - 1;
        jobs.push_back(&items[i]);
    }
    run(jobs, check);

    std::vector<generated> result;
    for (generate_job & item : items) {
        result.push_back(std::move(item.result));
    }
    return result;
}

// Returns the jobs of each graph: as many as fit, where sequences share their memory, and so one graph.
std::vector<std::vector<job *>> session::in_graphs(const std::vector<job *> & jobs) const {
    const size_t                    n_most = std::min({ n_ubatch, n_batch, n_ctx });
    std::vector<std::vector<job *>> graphs;
    size_t                          n_tokens = 0;
    for (job * item : jobs) {
        n_tokens += item->tokens.size();
        if (graphs.empty() || !kv_unified || graphs.back().size() == n_seq_max || n_tokens > n_most) {
            graphs.emplace_back();
            n_tokens = item->tokens.size();
        }
        graphs.back().push_back(item);
    }
    return graphs;
}

// Checks that each sequence is in one graph, and the graphs are those of the points; makes points where there are none.
void session::prepare_points(std::vector<resume_point> & points, const std::vector<std::vector<job *>> & graphs) const {
    std::vector<resume_point> found;
    for (const std::vector<job *> & graph : graphs) {
        found.emplace_back();
        for (const job * item : graph) {
            if (item->tokens.size() > n_ubatch) {
                throw input_error("visit_inputs: sequence " + std::to_string(item->number) + " has " + std::to_string(item->tokens.size()) +
                                  " tokens, expected n_ubatch (" + std::to_string(n_ubatch) + ") at most with points");
            }
            found.back().sequences.push_back(item->tokens);
        }
    }
    if (points.empty()) {
        points = std::move(found);
        return;
    }
    const auto has_same = [](const resume_point & a, const resume_point & b) { return a.sequences == b.sequences; };
    if (!std::equal(points.begin(), points.end(), found.begin(), found.end(), has_same)) {
        throw input_error("visit_inputs: the sequences of a graph are others than those of its point, expected the same ones and the same "
                          "n_seq_max and n_ubatch");
    }
}

std::unordered_map<std::string, std::string> session::visit_inputs(const std::vector<sequence> &    seqs,
                                                                   const std::vector<std::string> & names,
                                                                   const input_tap::visit_fn & visit, std::vector<resume_point> * points,
                                                                   const check_fn & check) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    if (tap == nullptr) {
        throw input_error("visit_inputs: the runtime does not watch. Open it with watch=True");
    }
    std::vector<job_without_output> items(seqs.size(), job_without_output(*tap));
    std::vector<job *>              jobs;
    for (size_t i = 0; i < seqs.size(); ++i) {
        prepare(items[i], seqs[i], i, 0);
        jobs.push_back(&items[i]);
    }
    const std::vector<std::vector<job *>> graphs = in_graphs(jobs);
    if (points != nullptr) {
        prepare_points(*points, graphs);
    }
    tap->start({ names.begin(), names.end() }, visit, points);
    try {
        for (const std::vector<job *> & graph : graphs) {
            run(graph, [&] {
                tap->check();
                check();
            });
        }
        tap->check();
    } catch (...) {
        tap->stop();
        throw;
    }
    tap->stop();
    return tap->aliases();
}

void session::set_weight(const std::string & name, const float * values, size_t n) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    if (is_mapped) {
        throw input_error("set_weight: the model is mapped. Open it with use_mmap=False");
    }
    if (!dqrelo_set_weight(model, name.c_str(), values, n)) {
        throw input_error(path + ": has no weight '" + name + "' of " + std::to_string(n) + " numbers in F32, F16 or BF16");
    }
}

uint64_t session::time_streams(const std::vector<blend> & blends, const timing_params & params, const check_fn & check) {
    std::lock_guard<std::mutex> lock(mutex);
    require_open();
    if (blends.empty() || blends.size() > n_seq_max) {
        throw input_error("time_streams: got " + std::to_string(blends.size()) + " streams, expected 1 to " + std::to_string(n_seq_max) +
                          " (n_seq_max)");
    }
    if (params.n_threads < 1) {
        throw input_error("time_streams: got " + std::to_string(params.n_threads) + " threads, expected at least 1");
    }
    for (const blend & parts : blends) {
        check_parts(parts, "time_streams: ");
    }
    return ::time_streams(ctx, blends, params, [&] {
        require_open();
        check();
    });
}
