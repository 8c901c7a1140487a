// test-context BASE DELTA_A DELTA_B MERGED_A MERGED_B FLASH_ATTN TYPE_KV [yarn | blends]
//
// What a llama_context does beside decoding a batch: prefixes that sequences share, a context shift, saved and restored states, ubatches
// smaller than the batch, and embeddings with every pooling. The same calls are made on the base with deltas and on the merged models (with
// `blends`, of 0.6 A + 0.4 B, and of A - 0.5 B); a line a case: name, NMSE against the merged models, and the NMSE that the base without a
// delta has. The last line is for a sequence of the base beside those. tests/context/test_context.py makes the files and judges the
// figures.
#include "dqrelo.h"
#include "support/log-errors.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int N_CTX   = 256;
constexpr int N_BATCH = 64;
constexpr int N_SEQ   = 4;

struct model_deleter {
    void operator()(llama_model * m) const { llama_model_free(m); }
};
struct context_deleter {
    void operator()(llama_context * c) const { llama_free(c); }
};
using model_ptr   = std::unique_ptr<llama_model, model_deleter>;
using context_ptr = std::unique_ptr<llama_context, context_deleter>;
using floats      = std::vector<float>;

[[noreturn]] void fail(const std::string & what) {
    printf("failed: %s\n", what.c_str());
    exit(1);
}

struct options {
    llama_flash_attn_type   flash_attn;
    ggml_type               type_kv;
    uint32_t                n_ubatch   = N_BATCH;
    enum llama_pooling_type pooling    = LLAMA_POOLING_TYPE_NONE;
    bool                    embeddings = false;
    bool                    yarn       = false; // This RoPE multiplies what it rotates, too.
};

using blend = std::vector<dqrelo_part>;

// A model, and the deltas that it runs with in each sequence: a plain model has none.
struct subject {
    llama_model *      model;
    std::vector<blend> blends; // Sequence i has blends[i % size].

    context_ptr open(const options & o) const {
        llama_context_params p = llama_context_default_params();
        p.n_ctx                = N_CTX;
        p.n_batch              = N_BATCH;
        p.n_ubatch             = o.n_ubatch;
        p.n_seq_max            = N_SEQ;
        p.n_threads = p.n_threads_batch = 1;
        p.flash_attn_type               = o.flash_attn;
        p.type_k = p.type_v = o.type_kv;
        p.pooling_type      = o.pooling;
        p.embeddings        = o.embeddings;
        if (o.yarn) {
            p.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
            p.rope_freq_scale   = 0.5f;
            p.yarn_ext_factor   = 1.0f;
            p.yarn_attn_factor  = 1.2f;
        }
        p.kv_unified = true;
        p.swa_full   = true; // Prefixes and shifts need the whole cache.
        context_ptr ctx(llama_init_from_model(model, p));
        if (!ctx) {
            fail("no context");
        }
        char err[1024];
        for (int i = 0; i < N_SEQ && !blends.empty(); i++) {
            const blend & parts = blends[i % blends.size()];
            if (!dqrelo_bind_parts(ctx.get(), i, parts.data(), parts.size(), err, sizeof(err))) {
                fail(err);
            }
        }
        return ctx;
    }
};

std::vector<llama_token> random_tokens(int n, int seed, const llama_model * model) {
    std::mt19937                       gen(seed);
    std::uniform_int_distribution<int> any(3, llama_vocab_n_tokens(llama_model_get_vocab(model)) - 1);
    std::vector<llama_token>           tokens;
    for (int i = 0; i < n; i++) {
        tokens.push_back(any(gen));
    }
    return tokens;
}

// Sequences that are decoded together; each starts at its position.
struct part {
    llama_seq_id             seq_id;
    llama_pos                pos;
    std::vector<llama_token> tokens;
    bool                     is_counted = true; // If it is false, the part runs beside, on the other delta.
};

// Decodes them in one batch; the logits of all rows, or the embeddings [n_rows, n_embd] (a row a sequence where they are pooled).
floats decode(llama_context * ctx, const std::vector<part> & parts, const options & o = {}) {
    llama_batch batch = llama_batch_init(N_BATCH, 0, 1);
    for (const part & p : parts) {
        for (size_t i = 0; i < p.tokens.size(); i++) {
            const int k        = batch.n_tokens++;
            batch.token[k]     = p.tokens[i];
            batch.pos[k]       = p.pos + (llama_pos) i;
            batch.n_seq_id[k]  = 1;
            batch.seq_id[k][0] = p.seq_id;
            batch.logits[k]    = true;
        }
    }
    if (llama_decode(ctx, batch) != 0) {
        fail("llama_decode");
    }
    const llama_model * model = llama_get_model(ctx);
    const size_t        n     = o.embeddings ? llama_model_n_embd(model) : llama_vocab_n_tokens(llama_model_get_vocab(model));
    floats              out;
    if (o.embeddings && o.pooling != LLAMA_POOLING_TYPE_NONE) {
        for (const part & p : parts) {
            const float * row = llama_get_embeddings_seq(ctx, p.seq_id);
            out.insert(out.end(), row, row + (p.is_counted ? n : 0));
        }
    } else {
        int k = 0;
        for (const part & p : parts) {
            for (size_t i = 0; i < p.tokens.size(); i++, k++) {
                const float * row = o.embeddings ? llama_get_embeddings_ith(ctx, k) : llama_get_logits_ith(ctx, k);
                out.insert(out.end(), row, row + (p.is_counted ? n : 0));
            }
        }
    }
    llama_batch_free(batch);
    return out;
}

void append(floats & out, const floats & more) {
    out.insert(out.end(), more.begin(), more.end());
}

// A prompt in sequence 0; sequence `other` continues from a copy of its memory.
floats shared_prefix(const subject & s, const options & o) {
    const context_ptr ctx    = s.open(o);
    llama_memory_t    memory = llama_get_memory(ctx.get());
    const auto        prompt = random_tokens(20, 1, s.model);
    decode(ctx.get(), { { 0, 0, prompt } });
    llama_memory_seq_cp(memory, 0, 2, -1, -1); // Sequence 2 has the delta of sequence 0.
    return decode(ctx.get(), { { 1, 0, random_tokens(8, 9, s.model), false },
                               { 0, 20, random_tokens(5, 2, s.model) },
                               { 2, 20, random_tokens(7, 3, s.model) } });
}

// 40 tokens, of which the oldest but four go, and the others move up to 28.
void decode_and_shift(llama_context * ctx, llama_seq_id seq_id, const llama_model * model) {
    decode(ctx, { { seq_id, 0, random_tokens(40, 1 + seq_id, model) } });
    llama_memory_t memory = llama_get_memory(ctx);
    if (!llama_memory_seq_rm(memory, seq_id, 4, 16)) {
        fail("llama_memory_seq_rm");
    }
    llama_memory_seq_add(memory, seq_id, 16, -1, -12);
}

floats context_shift(const subject & s, const options & o) {
    const context_ptr ctx = s.open(o);
    decode_and_shift(ctx.get(), 0, s.model);
    return decode(ctx.get(), { { 1, 0, random_tokens(8, 9, s.model), false }, { 0, 28, random_tokens(10, 2, s.model) } });
}

// Sequences of both deltas at once.
floats context_shifts(const subject & s, const options & o) {
    const context_ptr ctx = s.open(o);
    decode_and_shift(ctx.get(), 1, s.model);
    decode_and_shift(ctx.get(), 0, s.model);
    return decode(ctx.get(), { { 1, 28, random_tokens(8, 9, s.model), false }, { 0, 28, random_tokens(10, 2, s.model) } });
}

// Decodes a sequence without a delta beside others that move, and returns its logits alone.
floats base_beside_shifts(const subject & s, const options & o) {
    const context_ptr ctx = s.open(o);
    char              err[1024];
    if (!dqrelo_bind(ctx.get(), 3, nullptr, 1.0f, err, sizeof(err))) {
        fail(err);
    }
    for (llama_seq_id seq_id : { 0, 1, 3 }) {
        decode_and_shift(ctx.get(), seq_id, s.model);
        decode(ctx.get(), { { seq_id, 28, random_tokens(1, 9, s.model) } }); // This moves the cells.
    }
    for (llama_seq_id seq_id : { 0, 1, 3 }) {
        llama_memory_seq_add(llama_get_memory(ctx.get()), seq_id, 4, -1, 3); // This moves them once more, all at once.
    }
    return decode(ctx.get(), { { 3, 32, random_tokens(10, 2, s.model) } });
}

// A sequence's memory goes to another context as bytes, and on from there.
floats restored_sequence(const subject & s, const options & o) {
    std::vector<uint8_t> bytes;
    {
        const context_ptr ctx = s.open(o);
        decode(ctx.get(), { { 0, 0, random_tokens(20, 1, s.model) } });
        bytes.resize(llama_state_seq_get_size(ctx.get(), 0));
        if (llama_state_seq_get_data(ctx.get(), bytes.data(), bytes.size(), 0) != bytes.size()) {
            fail("llama_state_seq_get_data");
        }
    }
    const context_ptr ctx = s.open(o);
    if (llama_state_seq_set_data(ctx.get(), bytes.data(), bytes.size(), 2) == 0) {
        fail("llama_state_seq_set_data");
    }
    return decode(ctx.get(), { { 1, 0, random_tokens(8, 9, s.model), false }, { 2, 20, random_tokens(6, 2, s.model) } });
}

// The whole state goes to another context. Bindings are no part of it.
floats restored_context(const subject & s, const options & o) {
    std::vector<uint8_t> bytes;
    {
        const context_ptr ctx = s.open(o);
        decode(ctx.get(), { { 0, 0, random_tokens(12, 1, s.model) }, { 2, 0, random_tokens(9, 4, s.model) } });
        bytes.resize(llama_state_get_size(ctx.get()));
        bytes.resize(llama_state_get_data(ctx.get(), bytes.data(), bytes.size()));
    }
    const context_ptr ctx = s.open(o);
    if (llama_state_set_data(ctx.get(), bytes.data(), bytes.size()) == 0) {
        fail("llama_state_set_data");
    }
    return decode(
        ctx.get(),
        { { 1, 0, random_tokens(8, 9, s.model), false }, { 0, 12, random_tokens(6, 2, s.model) }, { 2, 9, random_tokens(6, 3, s.model) } });
}

// Sequences end in the middle of ubatches.
floats small_ubatches(const subject & s, options o) {
    o.n_ubatch            = 7;
    const context_ptr ctx = s.open(o);
    floats            out = decode(ctx.get(), { { 1, 0, random_tokens(8, 9, s.model), false },
                                                { 0, 0, random_tokens(19, 1, s.model) },
                                                { 2, 0, random_tokens(24, 2, s.model) } });
    append(out, decode(ctx.get(), { { 0, 19, random_tokens(1, 3, s.model) }, { 2, 24, random_tokens(2, 4, s.model) } }));
    return out;
}

floats pooled(const subject & s, options o, enum llama_pooling_type pooling) {
    o.embeddings          = true;
    o.pooling             = pooling;
    const context_ptr ctx = s.open(o);
    return decode(
        ctx.get(),
        { { 1, 0, random_tokens(8, 9, s.model), false }, { 0, 0, random_tokens(14, 1, s.model) }, { 2, 0, random_tokens(9, 2, s.model) } },
        o);
}

double nmse(const floats & got, const floats & expected) {
    double error = 0, power = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        error += (got[i] - expected[i]) * (got[i] - expected[i]);
        power += expected[i] * expected[i];
    }
    return error / power;
}

using scenario = std::function<floats(const subject &, const options &)>;

// Even sequences have one delta and are compared, odd ones have the other one and run beside them; first A is compared, then B.
void run(const std::string & name, const scenario & fn, const options & o, llama_model * base, const std::vector<blend> & blends,
         const std::vector<llama_model *> & merged) {
    for (size_t i = 0; i < blends.size(); i++) {
        const subject with     = { base, { blends[i], blends[1 - i] } };
        const floats  expected = fn({ merged[i], {} }, o);
        printf("%s: nmse %.3e base %.3e\n", name.c_str(), nmse(fn(with, o), expected), nmse(fn({ base, {} }, o), expected));
    }
}

model_ptr load(const char * path) {
    llama_model_params p = llama_model_default_params();
    p.n_gpu_layers       = 0;
    model_ptr model(llama_model_load_from_file(path, p));
    if (!model) {
        fail(std::string("cannot load ") + path);
    }
    return model;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 8) {
        fail("usage: test-context BASE DELTA_A DELTA_B MERGED_A MERGED_B FLASH_ATTN TYPE_KV [yarn | blends]");
    }
    log_errors_only();
    options o;
    o.flash_attn = strcmp(argv[6], "on") == 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    o.yarn       = argc > 8 && strcmp(argv[8], "yarn") == 0;
    o.type_kv    = strcmp(argv[7], "q8_0") == 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;

    const model_ptr                  base     = load(argv[1]);
    const model_ptr                  merged_a = load(argv[4]);
    const model_ptr                  merged_b = load(argv[5]);
    std::vector<dqrelo_delta *>      deltas;
    const std::vector<llama_model *> merged = { merged_a.get(), merged_b.get() };
    for (int i = 2; i < 4; i++) {
        char err[1024];
        deltas.push_back(dqrelo_load(base.get(), argv[1], argv[i], dqrelo_load_default_params(), err, sizeof(err)));
        if (deltas.back() == nullptr) {
            fail(err);
        }
    }
    std::vector<blend> blends = { { { deltas[0], 1.0f } }, { { deltas[1], 1.0f } } };
    if (argc > 8 && strcmp(argv[8], "blends") == 0) {
        blends = { { { deltas[0], 0.6f }, { deltas[1], 0.4f } }, { { deltas[1], -0.5f }, { deltas[0], 1.0f } } };
    }
    const auto with_pooling = [](enum llama_pooling_type pooling) {
        return [pooling](const subject & s, const options & opt) { return pooled(s, opt, pooling); };
    };
    const std::vector<std::pair<std::string, scenario>> scenarios = {
        { "shared prefix", shared_prefix },
        { "context shift", context_shift },
        { "context shifts", context_shifts },
        { "restored sequence", restored_sequence },
        { "restored context", restored_context },
        { "small ubatches", small_ubatches },
        { "embeddings", with_pooling(LLAMA_POOLING_TYPE_NONE) },
        { "pooling mean", with_pooling(LLAMA_POOLING_TYPE_MEAN) },
        { "pooling cls", with_pooling(LLAMA_POOLING_TYPE_CLS) },
        { "pooling last", with_pooling(LLAMA_POOLING_TYPE_LAST) },
    };
    for (const auto & [name, fn] : scenarios) {
        run(name, fn, o, base.get(), blends, merged);
    }
    printf("base beside shifts: nmse %.3e\n",
           nmse(base_beside_shifts({ base.get(), blends }, o), base_beside_shifts({ base.get(), {} }, o)));
    for (dqrelo_delta * delta : deltas) {
        if (!dqrelo_free(delta)) {
            fail("a delta is still bound after its contexts were freed");
        }
    }
    return 0;
}
