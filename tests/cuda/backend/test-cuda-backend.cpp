// test-cuda-backend: ggml-cuda on the emulator. Some ordinary ops against the CPU backend, which shows that the emulation is right; and for
// which tables it supports the op DQRELO. What the op gives there dqrelo-op-check tests.

#include "support/check.h"
#include "emulated.h"
#include "support/random-entry.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <functional>

namespace {

ggml_backend_t cuda = nullptr;
ggml_backend_t cpu  = nullptr;

//
// ordinary ops
//

// An op on leaves of random content: `build` makes the leaves, then the node on them.
struct ordinary {
    const char *                                 name;
    double                                       max_nmse;
    std::function<ggml_tensor *(ggml_context *)> build;
};

constexpr int N_IDS = 7; // Ids and positions are below it.

// The bounds of upstream's test-backend-ops: F32 throughout, and weights whose product quantises the activation, on either side in its own
// way. On the CPU, F16 weights round it to F16: by 2^-11 at most.
constexpr double MAX_NMSE           = 1e-7;
constexpr double MAX_NMSE_F16       = 1.0 / (1 << 22);
constexpr double MAX_NMSE_QUANTISED = 5e-4;

void fill(ggml_tensor * t, std::mt19937 & rng) {
    const int64_t        n = ggml_nelements(t);
    std::vector<uint8_t> data(ggml_nbytes(t));
    if (t->type == GGML_TYPE_I32) {
        for (int64_t i = 0; i < n; i++) {
            ((int32_t *) data.data())[i] = (int32_t) (rng() % N_IDS);
        }
    } else {
        const std::vector<float> values = random_row(n, rng);
        ggml_quantize_chunk(t->type, values.data(), data.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
    }
    ggml_backend_tensor_set(t, data.data(), 0, data.size());
}

std::vector<float> compute(const ordinary & op, ggml_backend_t backend) {
    const ggml_context_ptr        ctx(ggml_init({ 16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_tensor *                 node  = op.build(ctx.get());
    ggml_cgraph *                 graph = ggml_new_graph(ctx.get());
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    std::mt19937                  rng(11);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
        if (t->op == GGML_OP_NONE) {
            fill(t, rng);
        }
    }
    ggml_build_forward_expand(graph, node);
    CHECK(ggml_backend_supports_op(backend, node));
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
    std::vector<float> out((size_t) ggml_nelements(node));
    ggml_backend_tensor_get(node, out.data(), 0, ggml_nbytes(node));
    return out;
}

double nmse(const std::vector<float> & got, const std::vector<float> & want) {
    double error = 0.0, power = 0.0;
    for (size_t i = 0; i < want.size(); i++) {
        error += std::pow((double) got[i] - want[i], 2);
        power += std::pow((double) want[i], 2);
    }
    return error / power;
}

ordinary mul_mat(const char * name, ggml_type type, int64_t n_rows, double max_nmse) {
    return { name, max_nmse, [=](ggml_context * ctx) {
                return ggml_mul_mat(ctx, ggml_new_tensor_2d(ctx, type, 512, 48), ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 512, n_rows));
            } };
}

// Few rows take the kernels for vectors, many those for tiles and cuBLAS.
std::vector<ordinary> ordinary_ops() {
    std::vector<ordinary> ops;
    for (int64_t n_rows : { 1, 3, 20 }) {
        ops.push_back(mul_mat("mul_mat/f32", GGML_TYPE_F32, n_rows, MAX_NMSE));
        ops.push_back(mul_mat("mul_mat/f16", GGML_TYPE_F16, n_rows, MAX_NMSE_F16));
        ops.push_back(mul_mat("mul_mat/q8_0", GGML_TYPE_Q8_0, n_rows, MAX_NMSE_QUANTISED));
        ops.push_back(mul_mat("mul_mat/q4_0", GGML_TYPE_Q4_0, n_rows, MAX_NMSE_QUANTISED));
        ops.push_back(mul_mat("mul_mat/q4_K", GGML_TYPE_Q4_K, n_rows, MAX_NMSE_QUANTISED));
    }
    ops.push_back({ "mul_mat/f16, batched", MAX_NMSE_F16, [](ggml_context * ctx) {
                       return ggml_mul_mat(ctx, ggml_new_tensor_3d(ctx, GGML_TYPE_F16, 64, 40, 2),
                                           ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 64, 20, 4));
                   } });
    ops.push_back({ "rms_norm", MAX_NMSE,
                    [](ggml_context * ctx) { return ggml_rms_norm(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 300, 5), 1e-5f); } });
    ops.push_back({ "soft_max", MAX_NMSE, [](ggml_context * ctx) {
                       return ggml_soft_max_ext(ctx, ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 96, 5, 3),
                                                ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 96, 5), 0.2f, 0.0f);
                   } });
    ops.push_back({ "rope", MAX_NMSE, [](ggml_context * ctx) {
                       return ggml_rope(ctx, ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 64, 4, 6), ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 6),
                                        64, 0);
                   } });
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        ops.push_back({ "get_rows", MAX_NMSE, [=](ggml_context * ctx) {
                           return ggml_get_rows(ctx, ggml_new_tensor_2d(ctx, type, 256, N_IDS), ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 5));
                       } });
    }
    return ops;
}

void test_ordinary_ops() {
    for (const ordinary & op : ordinary_ops()) {
        check::begin(op.name);
        const double error = nmse(compute(op, cuda), compute(op, cpu));
        printf("  nmse %.2g\n", error);
        CHECK(error <= op.max_nmse);
    }
}

//
// the op
//

// A table in a device's memory has entries that point to it, so only that device can run the op.
bool supports_op(ggml_backend_t backend, ggml_backend_t memory) {
    const ggml_context_ptr        ctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, true }));
    const int32_t                 stride[3] = { 1, 0, 0 };
    ggml_tensor *                 y         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 33, 2);
    ggml_tensor *                 x         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 2);
    ggml_tensor *                 table     = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, sizeof(dqrelo_entry));
    ggml_tensor *                 tokens    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 2, 2);
    const ggml_backend_buffer_ptr buffer(memory ? ggml_backend_alloc_ctx_tensors(ctx.get(), memory) : nullptr);
    return ggml_backend_supports_op(backend, ggml_dqrelo(ctx.get(), DQRELO_FORM_MATMUL, y, x, nullptr, table, tokens, stride));
}

void test_support() {
    check::begin("support of the op DQRELO");
    CHECK(supports_op(cuda, cuda));
    CHECK(!supports_op(cuda, cpu));
    CHECK(!supports_op(cuda, nullptr));
    CHECK(supports_op(cpu, cpu));
}

} // namespace

int main() {
    cuda = ggml_backend_dev_init(ggml_backend_reg_dev_get(load_emulated(), 0), nullptr);
    cpu  = ggml_backend_cpu_init();
    test_ordinary_ops();
    test_support();
    ggml_backend_free(cuda);
    ggml_backend_free(cpu);
    return check::finish();
}
