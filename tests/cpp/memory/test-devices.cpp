// test-devices.cpp: where the deltas of weights are placed, and how they get into the memory of a device.

#include "support/check.h"
#include "support/gguf-builder.h"
#include "file/delta-file.h"
#include "memory/device-pack.h"
#include "support/fake-device.h"
#include "memory/placement.h"
#include "memory/upload.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <cstdio>
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
    const weight_in pinned(&gpu.pinned); // the CPU computes with it, whatever device can read it
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
    rpc.reg_name = "RPC"; // which says yes to every op
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
    const std::vector<uint8_t> bytes = random_bytes((size_t) 45 << 20); // more than the pinned buffers hold together
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
            std::fill(source.begin(), source.end(), (uint8_t) 0); // no longer needed
            up.finish();
        }
        CHECK(memcmp(t->data, bytes.data(), bytes.size()) == 0);
        CHECK((gpu.n_async > 4) == is_async);
    }
    CHECK(gpu.n_buffers == 0);
}

static void test_pack() {
    check::begin("a pack is what the file holds");
    const std::string bytes = testing::delta_of_every_form().file();
    testing::write_file(PATH, bytes);
    std::string err;
    const auto  file = dqrelo::delta_file::open(PATH, {}, err);
    CHECK(file != nullptr);
    fake_device               gpu;
    const std::vector<size_t> weights = { 0, 2, 4 };
    {
        const auto pack = dqrelo::device_pack::load(*file, &gpu.buft, weights, err);
        CHECK(pack != nullptr && gpu.n_buffers == 1);
        for (size_t i : weights) {
            const dqrelo_entry there = pack->entry(i), here = file->entry(i);
            const auto         at = [&](const void * p) { return (const uint8_t *) p; };
            CHECK(there.n_in == here.n_in && there.n_mat == here.n_mat && there.rank == here.rank && there.n_planes == here.n_planes);
            const uint8_t * first_there = at(here.n_planes > 0 ? (const void *) there.sign[0] : there.dense);
            const uint8_t * first_here  = at(here.n_planes > 0 ? (const void *) here.sign[0] : here.dense);
            CHECK(first_there != first_here);
            const uint8_t * pack_there = first_there - (first_here - file->data(i));
            CHECK(memcmp(pack_there, file->data(i), file->weights()[i].n_bytes) == 0);
        }
        CHECK(pack->n_bytes() == dqrelo::device_pack::bytes_needed(*file, &gpu.buft, weights));
    }
    CHECK(gpu.n_buffers == 0); // what goes leaves nothing behind

    gpu.n_bytes_max = 100;
    CHECK(dqrelo::device_pack::load(*file, &gpu.buft, weights, err) == nullptr);
    CHECK(err.find(std::string(PATH) + ": ") == 0 && err.find("Fake0") != std::string::npos && err.find('\n') == std::string::npos);
    CHECK(gpu.n_buffers == 0);
    remove(PATH);
}

int main() {
    test_host();
    test_fused();
    test_refused();
    test_upload(true);
    test_upload(false);
    test_pack();
    return check::finish();
}
