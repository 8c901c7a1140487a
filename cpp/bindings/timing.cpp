#include "timing.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <string>

namespace {

using steady_clock = std::chrono::steady_clock;

// A function of the CPU backend, which is asked for by name because no library links it.
template <typename F>
F * cpu_function(const char * name) {
    ggml_backend_dev_t dev  = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    void *             func = dev == nullptr ? nullptr : ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name);
    if (func == nullptr) {
        throw input_error("time_streams: the CPU backend has no " + std::string(name));
    }
    return (F *) func;
}

// The context's threads, as long as this lives: the same for prompts and steps, kept from graph to graph.
class attached_threads {
public:
    attached_threads(llama_context * ctx, int32_t n_threads) :
        ctx(ctx), n_before(llama_n_threads(ctx)), n_before_batch(llama_n_threads_batch(ctx)) {
        ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        pool                          = cpu_function<decltype(ggml_threadpool_new)>("ggml_threadpool_new")(&params);
        if (pool == nullptr) {
            throw input_error("time_streams: " + std::to_string(n_threads) + " threads could not be started");
        }
        llama_attach_threadpool(ctx, pool, nullptr);
        llama_set_n_threads(ctx, n_threads, n_threads);
    }

    ~attached_threads() {
        llama_detach_threadpool(ctx);
        llama_set_n_threads(ctx, n_before, n_before_batch);
        cpu_function<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(pool);
    }

    attached_threads(const attached_threads &)             = delete;
    attached_threads & operator=(const attached_threads &) = delete;

private:
    llama_context *   ctx;
    const int32_t     n_before;
    const int32_t     n_before_batch;
    ggml_threadpool * pool;
};

// Sequences 0 .. n-1 with their deltas bound, and the time that decoding them took.
class streams {
public:
    streams(llama_context * ctx, size_t n, uint32_t seed, const check_fn & check) :
        ctx(ctx),
        vocab(llama_model_get_vocab(llama_get_model(ctx))),
        check(check),
        n_batch(llama_n_batch(ctx)),
        batch(llama_batch_init((int32_t) n_batch, 0, 1)),
        next_pos(n, 0),
        random(seed) {
        clear();
    }

    ~streams() {
        clear();
        for (size_t i = 0; i < next_pos.size(); ++i) {
            bind_parts(ctx, (llama_seq_id) i, {});
        }
        llama_batch_free(batch);
    }

    streams(const streams &)             = delete;
    streams & operator=(const streams &) = delete;

    void prompt(size_t i_stream, size_t n_prompt) {
        for (size_t n_done = 0; n_done < n_prompt;) {
            check();
            const size_t n = std::min(n_prompt - n_done, n_batch);
            batch.n_tokens = 0;
            for (size_t i = 0; i < n; ++i) {
                add(i_stream, i + 1 == n);
            }
            n_done += n;
            decode(n_done == n_prompt);
        }
    }

    void step() {
        check();
        batch.n_tokens = 0;
        for (size_t i = 0; i < next_pos.size(); ++i) {
            add(i, true);
        }
        decode(true);
    }

    // Back to the beginning, with nothing on the clock.
    void clear() {
        llama_memory_clear(llama_get_memory(ctx), false);
        std::fill(next_pos.begin(), next_pos.end(), 0);
        elapsed = steady_clock::duration::zero();
    }

    uint64_t elapsed_ns() const { return (uint64_t) std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(); }

private:
    void add(size_t i_stream, bool is_output) {
        const llama_pos   pos    = next_pos[i_stream]++;
        const bool        is_bos = pos == 0 && llama_vocab_get_add_bos(vocab);
        const llama_token token  = is_bos ? llama_vocab_bos(vocab) : (llama_token) (random() % (uint32_t) llama_vocab_n_tokens(vocab));
        batch_add(batch, token, pos, (llama_seq_id) i_stream, is_output);
    }

    void decode(bool is_awaited) {
        const auto begin = steady_clock::now();
        decode_batch(ctx, batch);
        if (is_awaited) {
            llama_synchronize(ctx);
        }
        elapsed += steady_clock::now() - begin;
    }

    llama_context *        ctx;
    const llama_vocab *    vocab;
    const check_fn &       check;
    const size_t           n_batch;
    llama_batch            batch;
    std::vector<llama_pos> next_pos; // one for each stream
    std::mt19937           random;
    steady_clock::duration elapsed{};
};

} // namespace

uint64_t time_streams(llama_context * ctx, const std::vector<blend> & blends, const timing_params & params, const check_fn & check) {
    const attached_threads threads(ctx, params.n_threads);
    streams                run(ctx, blends.size(), params.seed, check);
    for (size_t i = 0; i < blends.size(); ++i) {
        bind_parts(ctx, (llama_seq_id) i, blends[i]);
    }
    if (params.n_prompt == 0) {
        run.step();
        run.clear();
    }
    for (size_t i = 0; i < blends.size(); ++i) {
        run.prompt(i, params.n_prompt);
    }
    for (size_t i = 0; i < params.n_gen; ++i) {
        run.step();
    }
    return run.elapsed_ns();
}
