// test-cuda-model N_GPU_LAYERS BASE [DELTA_A DELTA_B]
//
// A model on the emulated devices, beside the same on the CPU: without deltas, or with sequences of the base, of delta A, of delta B and of
// a blend of both in one batch. A line a case:
//
//   name: nmse N base B ops G of A    NMSE against the CPU, NMSE of the base without deltas against it, and how many ops DQRELO ran on
//   devices, of all
//
// There is also a line for each memory that delta A lies in. tests/cuda/test_cuda_model.py makes the files and judges the figures.
#include "dqrelo.h"
#include "emulated.h"
#include "llama.h"

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int N_SEQ = 3;
constexpr int BASE = -1, A = 0, B = 1, BLEND = 2; // What a sequence has.
constexpr int N_PROMPT = 12;                      // tokens of a sequence; a batch has more rows than the kernel for small batches takes

struct model_deleter {
    void operator()(llama_model * m) const { llama_model_free(m); }
};
struct context_deleter {
    void operator()(llama_context * c) const { llama_free(c); }
};
struct delta_deleter {
    void operator()(dqrelo_delta * d) const { dqrelo_free(d); }
};
using delta_ptr = std::unique_ptr<dqrelo_delta, delta_deleter>;
using floats    = std::vector<float>;

[[noreturn]] void fail(const std::string & what) {
    printf("failed: %s\n", what.c_str());
    exit(1);
}

// How many ops DQRELO a decode ran.
struct op_counter {
    int on_devices = 0;
    int all        = 0;

    static bool count(ggml_tensor * node, bool ask, void * user) {
        auto * counter = (op_counter *) user;
        if (ask && strcmp(ggml_op_name(node->op), "DQRELO") == 0) {
            counter->all++;
            counter->on_devices += !ggml_backend_buffer_is_host(node->buffer);
        }
        return false; // The node's values are not wanted.
    }
};

// A model in some memory, a context of it, and its deltas.
struct subject {
    std::unique_ptr<llama_model, model_deleter>     model;
    std::vector<delta_ptr>                          deltas;
    std::unique_ptr<op_counter>                     counter = std::make_unique<op_counter>();
    std::unique_ptr<llama_context, context_deleter> ctx; // It ends first, because it may have deltas bound.

    subject(const char * path, std::vector<ggml_backend_dev_t> devices, int n_gpu_layers) {
        devices.push_back(nullptr); // This ends the list.
        llama_model_params p = llama_model_default_params();
        p.devices            = devices.data();
        p.n_gpu_layers       = n_gpu_layers;
        model.reset(llama_model_load_from_file(path, p));
        llama_context_params c = llama_context_default_params();
        c.n_ctx                = 64 * N_SEQ;
        c.n_batch = c.n_ubatch = N_SEQ * N_PROMPT;
        c.n_seq_max            = N_SEQ;
        c.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        c.type_k = c.type_v = GGML_TYPE_F32; // The CPU rounds what it multiplies with F16.
        c.n_threads = c.n_threads_batch = 1;
        c.cb_eval                       = op_counter::count;
        c.cb_eval_user_data             = counter.get();
        ctx.reset(model ? llama_init_from_model(model.get(), c) : nullptr);
        if (!ctx) {
            fail(std::string("cannot load ") + path);
        }
    }

    void load(const char * path_model, const char * path) {
        char err[1024];
        deltas.emplace_back(dqrelo_load(model.get(), path_model, path, dqrelo_load_default_params(), err, sizeof(err)));
        if (!deltas.back()) {
            fail(err);
        }
    }

    // Sequence i gets what which[i] says, and an empty memory.
    void bind(const std::vector<int> & which) {
        char err[1024];
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        for (int i = 0; i < N_SEQ; i++) {
            std::vector<dqrelo_part> parts;
            if (which[(size_t) i] == BLEND) {
                parts = { { deltas[A].get(), 0.75f }, { deltas[B].get(), -0.5f } };
            } else if (which[(size_t) i] != BASE) {
                parts = { { deltas[(size_t) which[(size_t) i]].get(), 1.0f } };
            }
            if (!dqrelo_bind_parts(ctx.get(), i, parts.data(), parts.size(), err, sizeof(err))) {
                fail(err);
            }
        }
    }

    // Returns the logits of n tokens of each sequence, from position `first` on.
    floats decode(int first, int n) {
        const llama_vocab * vocab = llama_model_get_vocab(model.get());
        std::mt19937        gen(first + 1);
        llama_batch         batch = llama_batch_init(N_SEQ * n, 0, 1);
        for (int i = 0; i < N_SEQ * n; i++) {
            batch.token[i]     = (llama_token) (gen() % (uint32_t) llama_vocab_n_tokens(vocab));
            batch.pos[i]       = first + i / N_SEQ;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = i % N_SEQ;
            batch.logits[i]    = true;
        }
        batch.n_tokens = N_SEQ * n;
        *counter       = {};
        if (llama_decode(ctx.get(), batch) != 0) {
            fail("llama_decode");
        }
        const float * logits = llama_get_logits(ctx.get());
        floats        out(logits, logits + (size_t) batch.n_tokens * (size_t) llama_vocab_n_tokens(vocab));
        llama_batch_free(batch);
        return out;
    }
};

double nmse(const floats & got, const floats & want) {
    double error = 0.0, power = 0.0;
    for (size_t i = 0; i < want.size(); i++) {
        error += ((double) got[i] - want[i]) * ((double) got[i] - want[i]);
        power += (double) want[i] * want[i];
    }
    return error / power;
}

struct step {
    const char * name;
    int          first, n;
};
constexpr step STEPS[] = { { "prompt", 0, N_PROMPT }, { "token", N_PROMPT, 1 } };

void run(const std::string & name, subject & gpu, subject & cpu, const std::vector<int> & which) {
    for (subject * s : { &gpu, &cpu }) {
        s->bind({ BASE, BASE, BASE });
    }
    std::vector<floats> of_base;
    for (const step & s : STEPS) {
        of_base.push_back(cpu.decode(s.first, s.n));
    }
    gpu.bind(which);
    cpu.bind(which);
    for (size_t i = 0; i < of_base.size(); i++) {
        const floats got  = gpu.decode(STEPS[i].first, STEPS[i].n);
        const floats want = cpu.decode(STEPS[i].first, STEPS[i].n);
        printf("%s %s: nmse %.3g base %.3g ops %d of %d\n", name.c_str(), STEPS[i].name, nmse(got, want), nmse(of_base[i], want),
               gpu.counter->on_devices, gpu.counter->all);
    }
}

void print_memories(const dqrelo_delta * delta) {
    size_t n_bytes;
    for (int i = 0; const char * memory = dqrelo_memory(delta, i, &n_bytes); i++) {
        printf("memory %s: %zu bytes\n", memory, n_bytes);
    }
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 3 && argc != 5) {
        fprintf(stderr, "usage: test-cuda-model N_GPU_LAYERS BASE [DELTA_A DELTA_B]\n");
        return 2;
    }
    const ggml_backend_reg_t        reg = load_emulated();
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); i++) {
        devices.push_back(ggml_backend_reg_dev_get(reg, i));
    }
    llama_backend_init();
    {
        subject gpu(argv[2], devices, atoi(argv[1]));
        subject cpu(argv[2], {}, 0);
        run("base", gpu, cpu, { BASE, BASE, BASE });
        if (argc == 5) {
            for (subject * s : { &gpu, &cpu }) {
                s->load(argv[2], argv[3]);
                s->load(argv[2], argv[4]);
            }
            run("mixed", gpu, cpu, { BASE, A, B });
            run("swapped", gpu, cpu, { B, BASE, A });
            run("blended", gpu, cpu, { BLEND, B, BASE });
            print_memories(gpu.deltas[0].get());
        }
    }
    llama_backend_free();
    return 0;
}
