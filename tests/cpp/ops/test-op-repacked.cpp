// test-op-repacked.cpp: the op DQRELO over weights in the layouts that ggml's CPU backend gives them when it loads them.

#include "support/check.h"
#include "support/fold-cases.h"
#include "support/fold-run.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "repacked.h"

#include <cstring>
#include <string>

static ggml_backend_buffer_type_t repacking_buffers() {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    auto get_list          = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev),
                                                                                                    "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * buft = get_list ? get_list(dev) : nullptr; buft && *buft; buft++) {
        if (strcmp(ggml_backend_buft_name(*buft), "CPU_REPACK") == 0) {
            return *buft;
        }
    }
    return nullptr;
}

static std::string name_of(const char * what, ggml_type type) {
    return std::string(what) + "/" + ggml_type_name(type);
}

// Rows come back as they were, from any block on.
static void test_restores(ggml_backend_buffer_type_t buft, ggml_type type) {
    check::begin(name_of("repacked/restored", type).c_str());
    fold_case f(type, 1024, 24);
    CHECK(f.repack(buft));
    ggml_context *      ctx      = ggml_init({ (size_t) 1 << 20, nullptr, false });
    const ggml_tensor * w        = f.weight(ctx);
    const int64_t       n_blocks = 1024 / ggml_blck_size(type);
    const size_t        n_bytes  = ggml_type_size(type);
    CHECK(dqrelo_is_repacked(w) && dqrelo_can_restore(w));
    CHECK(memcmp(w->data, f.w.data.data(), f.w.data.size()) != 0);
    for (int64_t i = 0; i < 24; i++) {
        for (int64_t first = 0; first < n_blocks; first++) {
            const int64_t n = n_blocks - first;
            bytes         row((size_t) n * n_bytes + 1, 0xaa);
            dqrelo_restore_blocks(type, w->data, n_blocks, i, first, n, row.data());
            CHECK(memcmp(row.data(), f.w.data.data() + (size_t) (i * n_blocks + first) * n_bytes, (size_t) n * n_bytes) == 0);
            CHECK(row.back() == 0xaa);
        }
    }
    ggml_free(ctx);
}

// A folded row has the bits that it has over W in ggml's own layout.
static void test_folds(ggml_backend_buffer_type_t buft, ggml_type type) {
    for (int64_t n_in : { 256, 4352 }) {
        const kinds k(n_in, 152);
        fold_case   f(type, n_in, 152);
        f.c.entries = k.all();
        f.set_tokens(mixed());
        run(f, 1);
        const std::vector<float> plain = f.c.out;
        f.repack(buft);
        check_case(name_of("repacked/mixed", type) + "/n_in=" + std::to_string(n_in), f);
        for (int64_t r = 0; r < f.c.n_rows(); r++) {
            CHECK(!f.is_folded(r) || memcmp(f.c.out.data() + r * 152, plain.data() + r * 152, 152 * sizeof(float)) == 0);
        }
    }
}

// The same of experts, with rows of matrices behind the first one.
static void test_experts(ggml_backend_buffer_type_t buft, ggml_type type) {
    const stack_kinds k(512, 72, 5);
    fold_case         f = fold_case::of_experts(type, 512, 72, 5, 2);
    f.c.stacks          = k.all();
    f.c.one_x           = true;
    f.set_tokens(mixed());
    CHECK(f.repack(buft));
    check_case(name_of("repacked/experts", type), f);
    check_experts_beside_folded_ones(name_of("repacked/experts/rows that are not folded", type), f);
}

// A type whose layout is not known, and a buffer with none, are told apart.
static void test_unknown(ggml_backend_buffer_type_t buft) {
    check::begin("repacked/unknown");
    ggml_context * ctx = ggml_init({ (size_t) 1 << 20, nullptr, false });
    fold_case      f(GGML_TYPE_Q4_K, 256, 8);
    CHECK(!dqrelo_is_repacked(f.weight(ctx)) && !dqrelo_can_restore(f.weight(ctx)));
    fold_case other(GGML_TYPE_Q6_K, 256, 8);
    other.repack(buft);
    CHECK(dqrelo_is_repacked(other.weight(ctx)) && !dqrelo_can_restore(other.weight(ctx)));
    ggml_free(ctx);
}

int main() {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr); // Each repacked tensor is logged.
    ggml_backend_buffer_type_t buft = repacking_buffers();
    if (!buft) {
        printf("no layouts of this CPU\n");
        return check::finish();
    }
    for (ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q4_K }) {
        if (!fold_case(type, 256, 8).repack(buft)) {
            printf("no layout of %s\n", ggml_type_name(type));
            continue;
        }
        test_restores(buft, type);
        test_folds(buft, type);
        fold_case f(type, 256, 64);
        f.repack(buft);
        check_rows_beside_folded_ones(name_of("repacked/rows beside folded ones", type), f);
        test_experts(buft, type);
    }
    test_unknown(buft);
    return check::finish();
}
