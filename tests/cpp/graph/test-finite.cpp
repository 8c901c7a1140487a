// test-finite BASE DELTA OTHER FLASH_ATTN UNIFIED
//
// Sequences beside one whose numbers overflow, by a scale that is far too large: 0 runs the base, 1 OTHER, 2 DELTA. Sequences 0 and 1 must
// get the bits that they get beside a sound sequence 2: in the same batch, in batches after it, and after dqrelo_forget. One line a case,
// "case: ok" or what is wrong; tests/context/test_finite.py makes the files.
#include "dqrelo.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

using floats = std::vector<float>;

constexpr float TOO_LARGE = 1e8f;
constexpr int   N_SOUND   = 2; // sequences

[[noreturn]] void fail(const std::string & what) {
    printf("failed: %s\n", what.c_str());
    exit(1);
}

struct setup {
    llama_model *  model;
    dqrelo_delta * deltas[3]; // by sequence
    bool           flash_attn;
    bool           unified;
};

class run {
public:
    explicit run(const setup & s) : s(s) {
        llama_context_params p = llama_context_default_params();
        p.n_ctx                = 512;
        p.n_batch = p.n_ubatch = 64;
        p.n_seq_max            = 3;
        p.n_threads = p.n_threads_batch = 1;
        p.flash_attn_type               = s.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        p.kv_unified                    = s.unified;
        ctx.reset(llama_init_from_model(s.model, p));
        if (!ctx) {
            fail("no context");
        }
    }

    void bind(float scale) {
        char err[1024];
        for (int i = 0; i < 3; i++) {
            if (!dqrelo_bind(ctx.get(), i, s.deltas[i], i == 2 ? scale : 1.0f, err, sizeof(err))) {
                fail(err);
            }
        }
    }

    // Decodes the next n tokens of every sequence of [first, last] in one batch, and returns the logits of the sound ones' last tokens. Of
    // the others only the last token has an output, if they have one at all.
    floats decode(int first, int last, int n, bool others_have_outputs = true) {
        llama_batch      batch = llama_batch_init(64, 0, 1);
        std::vector<int> rows;
        for (int seq = first; seq <= last; seq++) {
            for (int i = 0; i < n; i++) {
                const int k        = batch.n_tokens++;
                batch.token[k]     = 5 + (7 * seq + 11 * pos[seq]) % 40;
                batch.pos[k]       = pos[seq]++;
                batch.n_seq_id[k]  = 1;
                batch.seq_id[k][0] = seq;
                batch.logits[k]    = i + 1 == n && (seq < N_SOUND || others_have_outputs);
                if (batch.logits[k]) {
                    last_row[seq] = k;
                    if (seq < N_SOUND) {
                        rows.push_back(k);
                    }
                }
            }
        }
        if (llama_decode(ctx.get(), batch) != 0) {
            fail("llama_decode");
        }
        const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(s.model));
        floats    out;
        for (int k : rows) {
            const float * row = llama_get_logits_ith(ctx.get(), k);
            out.insert(out.end(), row, row + n_vocab);
        }
        llama_batch_free(batch);
        return out;
    }

    bool is_finite(int seq, bool with_row) { return dqrelo_is_finite(ctx.get(), seq, with_row ? last_row[seq] : -1); }

    void forget(int seq) {
        dqrelo_forget(ctx.get(), seq);
        pos[seq] = 0;
    }

    void remove(int seq) {
        llama_memory_seq_rm(llama_get_memory(ctx.get()), seq, -1, -1);
        pos[seq] = 0;
    }

private:
    struct deleter {
        void operator()(llama_context * c) const { llama_free(c); }
    };
    const setup &                           s;
    std::unique_ptr<llama_context, deleter> ctx;
    int                                     pos[3]      = { 0, 0, 0 };
    int                                     last_row[3] = { 0, 0, 0 };
};

void expect(const char * name, bool good) {
    printf("%s: %s\n", name, good ? "ok" : "WRONG");
}

bool same_bits(const floats & a, const floats & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Returns what the sound sequences get in four batches: all three together, twice, then without the third.
std::vector<floats> story(run & r, float scale, bool is_forgotten) {
    std::vector<floats> found;
    r.bind(scale);
    found.push_back(r.decode(0, 2, 12));
    found.push_back(r.decode(0, 2, 1));
    is_forgotten ? r.forget(2) : r.remove(2);
    found.push_back(r.decode(0, 1, 1));
    r.bind(1.0f);
    found.push_back(r.decode(0, 2, 12)); // The cells of the third sequence are used again.
    return found;
}

void neighbours(const setup & s) {
    run        sound(s), removed(s), forgotten(s);
    const auto expected = story(sound, 1.0f, true);
    const auto got      = story(forgotten, TOO_LARGE, true);
    const auto without  = story(removed, TOO_LARGE, false);
    expect("same batch", same_bits(got[0], expected[0]));
    expect("next batch", same_bits(got[1], expected[1]));
    expect("after it was forgotten", same_bits(got[2], expected[2]));
    expect("its cells again", same_bits(got[3], expected[3]));
    expect("its cells, only removed", same_bits(without[3], expected[3]));
}

void finding(const setup & s) {
    run sound(s);
    sound.bind(1.0f);
    sound.decode(0, 2, 12);
    bool all = true;
    for (int seq = 0; seq < 3; seq++) {
        all = all && sound.is_finite(seq, false) && sound.is_finite(seq, true);
    }
    expect("sound ones are finite", all);

    run r(s);
    r.bind(TOO_LARGE);
    r.decode(0, 2, 12, /*others_have_outputs =*/false); // This is a part of a longer prompt.
    expect("found without an output", !r.is_finite(2, false) && r.is_finite(0, true) && r.is_finite(1, true));
    r.forget(2);
    expect("forgotten", r.is_finite(2, false));
    r.bind(1.0f);
    const floats again = r.decode(2, 2, 12);
    expect("finite again", r.is_finite(2, true));
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: test-finite BASE DELTA OTHER FLASH_ATTN UNIFIED\n");
        return 2;
    }
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) { level >= GGML_LOG_LEVEL_ERROR ? (void) fputs(text, stderr) : void(); },
        nullptr);
    llama_backend_init();
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers       = 0;
    setup s = { llama_model_load_from_file(argv[1], mparams), {}, strcmp(argv[4], "on") == 0, strcmp(argv[5], "yes") == 0 };
    if (!s.model) {
        fail("no model");
    }
    char               err[1024];
    dqrelo_load_params params = dqrelo_load_default_params();
    params.max_scale          = TOO_LARGE;
    s.deltas[1]               = dqrelo_load(s.model, argv[1], argv[3], params, err, sizeof(err));
    s.deltas[2]               = dqrelo_load(s.model, argv[1], argv[2], params, err, sizeof(err));
    if (!s.deltas[1] || !s.deltas[2]) {
        fail(err);
    }
    neighbours(s);
    finding(s);
    dqrelo_free(s.deltas[1]);
    dqrelo_free(s.deltas[2]);
    llama_model_free(s.model);
    return 0;
}
