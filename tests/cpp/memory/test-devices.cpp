// test-devices.cpp: where the deltas of weights are placed, and how they get into the memory of a device.

#include "support/check.h"
#include "support/gguf-builder.h"
#include "cpu/stack.h"
#include "file/delta-file.h"
#include "memory/composed-pack.h"
#include "memory/device-pack.h"
#include "support/fake-device.h"
#include "support/sparse-builder.h"
#include "memory/placement.h"
#include "memory/upload.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <random>

using dqrelo::method;
using dqrelo::placement;
using dqrelo::placement_of;

static const char * const PATH = "test-devices.dq.gguf";

// A weight in a buffer of the given type.
struct weight_in {
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           tensor;

    explicit weight_in(ggml_backend_buffer_type_t buft) :
        ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true })), tensor(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 8)) {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
    }
};

static void test_host() {
    check::begin("the CPU's weights are the mapped file's");
    CHECK(placement_of(weight_in(ggml_backend_cpu_buffer_type()).tensor).how == method::mapped);
    fake_device     gpu;
    const weight_in pinned(&gpu.pinned); // The CPU computes with it, whatever device can read it.
    const placement p = placement_of(pinned.tensor);
    CHECK(p.how == method::mapped && p.buft == ggml_backend_cpu_buffer_type() && p.problem.empty());
}

static void test_fused() {
    check::begin("a device with the operator gets a copy");
    fake_device     gpu;
    const weight_in w(&gpu.buft);
    const placement p = placement_of(w.tensor);
    CHECK(p.how == method::fused && p.buft == &gpu.buft && p.problem.empty());
}

static void expect_problem(const fake_device & gpu, const char * what) {
    const weight_in   w((ggml_backend_buffer_type_t) &gpu.buft);
    const std::string problem = placement_of(w.tensor).problem;
    CHECK(problem.find(gpu.buft_name) != std::string::npos && problem.find(what) != std::string::npos &&
          problem.find('\n') == std::string::npos);
}

static void test_refused() {
    check::begin("memory from which no delta can be read");
    fake_device split, rpc, meta;
    split.buft_name = "Fake_Split";
    expect_problem(split, "-sm row");
    rpc.reg_name = "RPC"; // A device of this name says yes to every op.
    expect_problem(rpc, "--rpc");
    meta.type = GGML_BACKEND_DEVICE_TYPE_META;
    expect_problem(meta, "-sm tensor");
}

static std::vector<uint8_t> random_bytes(size_t n) {
    std::mt19937         rng(7);
    std::vector<uint8_t> bytes(n);
    for (uint8_t & byte : bytes) {
        byte = (uint8_t) rng();
    }
    return bytes;
}

static void test_upload(bool is_async) {
    check::begin(is_async ? "upload through pinned memory" : "upload to a device without streams");
    const std::vector<uint8_t> bytes = random_bytes((size_t) 45 << 20); // The pinned buffers together hold less.
    fake_device                gpu;
    gpu.is_async = is_async;
    ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor *    t = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) bytes.size());
    {
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), &gpu.buft));
        {
            dqrelo::uploader     up(&gpu.dev);
            std::vector<uint8_t> source = bytes;
            up.copy(t, 0, source.data(), 5);
            up.copy(t, 5, source.data() + 5, source.size() - 5);
            std::fill(source.begin(), source.end(), (uint8_t) 0); // The source is no longer needed.
            up.finish();
        }
        CHECK(memcmp(t->data, bytes.data(), bytes.size()) == 0);
        CHECK((gpu.n_async > 4) == is_async);
    }
    CHECK(gpu.n_buffers == 0);
}

// The first tensor of a weight.
static const uint8_t * first_of(const dqrelo_entry & e) {
    const void * first = nullptr;
    for (const void * part : { (const void *) e.mask, (const void *) e.count, (const void *) e.dense, (const void *) e.vsign, e.u,
                               (const void *) e.cscale, (const void *) e.sign[0] }) {
        first = part ? part : first;
    }
    return (const uint8_t *) first;
}

static void test_pack(const testing::delta_builder & d, const std::vector<size_t> & weights) {
    check::begin(("a pack is what the file holds/version=" + std::to_string(d.version)).c_str());
    testing::write_file(PATH, d.file());
    std::string err;
    const auto  file = dqrelo::delta_file::open(PATH, {}, err);
    CHECK(file != nullptr);
    fake_device gpu;
    {
        const auto pack = dqrelo::device_pack::load(*file, &gpu.buft, weights, err);
        CHECK(pack != nullptr && gpu.n_buffers == 1);
        for (size_t i : weights) {
            const dqrelo_entry there = pack->entry(i), here = file->entry(i);
            CHECK(there.n_in == here.n_in && there.n_mat == here.n_mat && there.rank == here.rank && there.n_planes == here.n_planes &&
                  there.n_codes == here.n_codes);
            CHECK(first_of(there) != first_of(here));
            const uint8_t * pack_there = first_of(there) - (first_of(here) - file->data(i));
            CHECK(there.vsign - here.vsign == (here.vsign ? pack_there - file->data(i) : 0));
            CHECK(there.column - here.column == (here.column ? pack_there - file->data(i) : 0));
            CHECK(memcmp(pack_there, file->data(i), file->weights()[i].n_bytes) == 0);
        }
        CHECK(pack->n_bytes() == dqrelo::device_pack::bytes_needed(*file, &gpu.buft, weights));
    }
    CHECK(gpu.n_buffers == 0); // What goes leaves nothing behind.

    gpu.n_bytes_max = 100;
    CHECK(dqrelo::device_pack::load(*file, &gpu.buft, weights, err) == nullptr);
    CHECK(err.find(std::string(PATH) + ": ") == 0 && err.find("Fake0") != std::string::npos && err.find('\n') == std::string::npos);
    CHECK(gpu.n_buffers == 0);
    remove(PATH);
}

// Returns a weight with factors in F32, of which one number of each is `value`.
static std::unique_ptr<dqrelo::delta_file> file_with_factors_of(float value) {
    testing::delta_builder d;
    testing::random_source r(5);
    d.add_weight("w", { 64, 24 }, 1, 4);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { 8, 24 }, r.bytes(8 * 24), { 64, 24 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 1 }, testing::bytes_of_all(r.values(1)));
    for (const auto & [suffix, ne] : std::map<std::string, std::vector<uint64_t>>{ { "u", { 4, 24 } }, { "v", { 64, 4 } } }) {
        std::vector<float> values = r.values(ne[0] * ne[1]);
        values[7]                 = -value;
        d.add_tensor(".dq_" + suffix, suffix == "u" ? "DQ_U" : "DQ_V", GGML_TYPE_F32, ne, testing::bytes_of_all(values));
    }
    d.declare();
    testing::write_file(PATH, d.file());
    std::string err;
    return dqrelo::delta_file::open(PATH, {}, err);
}

static void test_overflow() {
    check::begin("a number that is too large for the type that a device multiplies");
    fake_device gpu; // It takes no product, so it is given F16.
    std::string err;
    for (float value : { 65504.0f, 65519.0f }) { // The last is rounded down.
        CHECK(dqrelo::composed_pack::load(*file_with_factors_of(value), &gpu.buft, { 0 }, err) != nullptr);
    }
    for (float value : { 65520.0f, 1e5f, 3e38f }) {
        err.clear();
        CHECK(dqrelo::composed_pack::load(*file_with_factors_of(value), &gpu.buft, { 0 }, err) == nullptr);
        CHECK(err.find(std::string(PATH) + ": tensor 'w.dq_u' has 1 numbers over 65504") == 0 && err.find('\n') == std::string::npos);
    }
    CHECK(gpu.n_buffers == 0);
    remove(PATH);
}

// Row `row` of a tensor as F32.
static std::vector<float> row_of(const ggml_tensor * t, int64_t row) {
    std::vector<float> out((size_t) t->ne[0]);
    const char *       data = (const char *) t->data + (size_t) row * t->nb[1];
    if (t->type == GGML_TYPE_F32) {
        memcpy(out.data(), data, ggml_row_size(t->type, t->ne[0]));
    } else {
        ggml_get_type_traits(t->type)->to_float(data, out.data(), t->ne[0]);
    }
    return out;
}

// Sign factors become U and V of ordinary ops: A and B of docs/format.md, section 1, up to half a step of the type.
static void test_decoded(ggml_backend_buffer_type_t buft, ggml_type type) {
    check::begin((std::string("sign factors without the operator/") + ggml_type_name(type)).c_str());
    testing::write_file(PATH, testing::delta_of_every_new_form().file());
    std::string               err;
    const auto                file    = dqrelo::delta_file::open(PATH, {}, err);
    const std::vector<size_t> weights = { 0, 1, 2, 3 };
    const auto                pack    = dqrelo::composed_pack::load(*file, buft, weights, err);
    CHECK(pack != nullptr && pack->n_bytes() == dqrelo::composed_pack::bytes_needed(*file, buft, weights));
    CHECK(pack->find(3)->a == nullptr && pack->find(3)->b == nullptr);
    for (size_t i : { 0, 1, 2 }) {
        const dqrelo_entry              stack = file->entry(i);
        const dqrelo::composed_weight * w     = pack->find(i);
        CHECK(w->a->type == type && w->b->type == type && w->a->ne[0] == 32 && w->b->ne[1] == 32);
        double worst = 0.0;
        for (int64_t m = 0; m < stack.n_mat; m++) {
            const dqrelo_entry e     = dqrelo_entry_matrix(&stack, m);
            const auto         value = [&](const void * scale, const uint8_t * signs, int64_t k, int64_t step, int64_t at) {
                double sum = 0.0;
                for (int64_t q = 0, code = k; q < 8 && k < e.plane_ranks[q]; code += e.plane_ranks[q++]) {
                    const int64_t bit = code * step + at;
                    const float   s   = ggml_bf16_to_fp32(((const ggml_bf16_t *) scale)[code]);
                    sum += signs[bit / 8] >> (bit % 8) & 1 ? s : -s;
                }
                return sum;
            };
            for (int64_t k = 0; k < 32; k++) {
                const std::vector<float> b = row_of(w->b, 32 * m + k);
                for (int64_t j = 0; j < e.n_in; j++) {
                    worst = std::max(worst, std::fabs(b[(size_t) j] - value(e.vscale, e.vsign, k, e.n_in, j)));
                }
            }
            for (int64_t r = 0; r < e.n_out; r++) {
                const std::vector<float> a = row_of(w->a, e.n_out * m + r);
                for (int64_t k = 0; k < 32; k++) {
                    worst = std::max(worst, std::fabs(a[(size_t) k] - value(e.uscale, e.usign, k, 1, r * e.n_codes)));
                }
            }
        }
        // values are below 8: half a step of Q8_0 is 8 / 254, and of F16 8 / 4096
        CHECK(worst < (type == GGML_TYPE_Q8_0 ? 8.0 / 250 : 8.0 / 4096));
    }
    remove(PATH);
}

// Element j of row i of one matrix of a sparse weight.
static double sparse_at(const dqrelo_entry & e, int64_t i, int64_t j) {
    const int64_t n_blocks = (e.n_in + 255) / 256;
    int64_t       at       = e.start[i];
    bool          found    = false;
    if (e.mask) {
        const auto is_set = [&](int64_t column) { return e.mask[i * (e.n_in / 8) + column / 8] >> (column % 8) & 1; };
        for (int64_t column = 0; column < j; column++) {
            at += is_set(column);
        }
        found = is_set(j);
    } else {
        for (int64_t b = 0; b < j / 256; b++) {
            at += e.count[i * n_blocks + b];
        }
        for (const int64_t end = at + e.count[i * n_blocks + j / 256]; at < end && !found; at += found ? 0 : 1) {
            found = e.column[at] == j % 256;
        }
    }
    if (!found) {
        return 0.0;
    }
    const uint16_t * halves = (const uint16_t *) e.entries;
    switch (e.type_entries) {
        case GGML_TYPE_F16: return ggml_fp16_to_fp32(halves[at]);
        case GGML_TYPE_BF16: return ggml_bf16_to_fp32({ halves[at] });
        default: return (double) e.escale[i] * ggml_fp16_to_fp32((uint16_t) (((const uint8_t *) e.entries)[at] << 8));
    }
}

// Sparse weights become dense ones of ordinary ops, each number as it is, up to BF16's half step where a scale is no power of two.
static void test_sparse(ggml_backend_buffer_type_t buft, ggml_type type, ggml_type type_of_f16) {
    check::begin((std::string("sparse weights without the operator/") + ggml_type_name(type)).c_str());
    testing::write_file(PATH, testing::delta_of_sparse_weights().file());
    std::string               err;
    const auto                file    = dqrelo::delta_file::open(PATH, {}, err);
    const std::vector<size_t> weights = { 0, 1, 2 };
    const auto                pack    = dqrelo::composed_pack::load(*file, buft, weights, err);
    CHECK(pack != nullptr && pack->n_bytes() == dqrelo::composed_pack::bytes_needed(*file, buft, weights));
    size_t n_bytes = 0;
    for (size_t i : weights) {
        const dqrelo_entry  stack = file->entry(i);
        const ggml_tensor * dense = pack->find(i)->dense;
        CHECK(dense->type == (i == 2 ? type_of_f16 : type) && dense->ne[0] == stack.n_in && ggml_nrows(dense) == stack.n_out * stack.n_mat);
        n_bytes += ggml_nbytes(dense);
        double worst = 0.0;
        for (int64_t r = 0; r < stack.n_out * stack.n_mat; r++) {
            const dqrelo_entry       e   = dqrelo_entry_matrix(&stack, r / stack.n_out);
            const std::vector<float> row = row_of(dense, r);
            for (int64_t j = 0; j < e.n_in; j++) {
                const double want = sparse_at(e, r % stack.n_out, j);
                worst = std::max(worst, want == 0.0 ? std::fabs((double) row[(size_t) j]) : std::fabs(row[(size_t) j] / want - 1.0));
            }
        }
        CHECK(worst <= (i == 0 ? 1.0 / 256 : 0.0));
    }
    CHECK(pack->n_bytes() >= n_bytes);
    remove(PATH);
}

int main() {
    test_host();
    test_fused();
    test_refused();
    test_upload(true);
    test_upload(false);
    test_pack(testing::delta_of_every_form(), { 0, 2, 4 });
    test_pack(testing::delta_of_every_new_form(), { 0, 2, 4 });
    test_pack(testing::delta_of_sparse_weights(), { 0, 1, 2, 3 });
    test_decoded(ggml_backend_cpu_buffer_type(), GGML_TYPE_Q8_0);
    test_sparse(ggml_backend_cpu_buffer_type(), GGML_TYPE_BF16, GGML_TYPE_F16);
    fake_device gpu; // takes no product
    test_sparse(&gpu.buft, GGML_TYPE_F32, GGML_TYPE_F32);
    test_decoded(&gpu.buft, GGML_TYPE_F16);
    test_overflow();
    return check::finish();
}
