// test-arrange.cpp: the signs of a delta in the sequence of this CPU's kernels, and what stays as the file has it.
#include "support/check.h"

#include "cpu/transposed-signs.h"
#include "file/arrange.h"
#include "file/delta-file.h"
#include "support/gguf-builder.h"

#include <atomic>
#include <random>

using namespace dqrelo;
using namespace testing;

static const char * const PATH = "test-arrange.dq.gguf";

#include "support/open-delta.h"

static std::string transposed(std::string signs, int64_t n_rows, int64_t row_bytes) {
    dqrelo_transpose_signs((uint8_t *) signs.data(), n_rows, row_bytes);
    return signs;
}

static void test_delta_file(bool use_mmap) {
    check::begin(use_mmap ? "a mapped file" : "a file in memory");
    const delta_builder d = delta_of_every_form();
    std::string         err;
    delta_file::options options;
    options.use_mmap = use_mmap;
    const auto delta = open_bytes(d.file(), err, options);
    CHECK(delta != nullptr);
    if (!delta) {
        return;
    }
    const bool is_arranged = dqrelo_transposes_signs() && !use_mmap;
    for (int round = 0; round < 2; ++round) { // Signs that are arranged stay so.
        delta->arrange_signs({ 0, 2 }, {});
        const dqrelo_entry paper = delta->entry(0), planes = delta->entry(1), experts = delta->entry(2);
        CHECK(paper.transposed == is_arranged && experts.transposed == is_arranged && planes.transposed == 0);
        CHECK(delta->entry_at(0, d.tensors[0].data.data()).transposed == 0);
        const std::string & signs = d.tensors[0].data;
        CHECK(same_bytes(paper.sign[0], is_arranged ? transposed(signs, 24, 8) : signs));
        CHECK(same_bytes(paper.scale[0], d.tensors[1].data) && same_bytes(paper.u, d.tensors[2].data) &&
              same_bytes(paper.v, d.tensors[3].data));
        CHECK(same_bytes(planes.sign[0], d.tensors[4].data) && same_bytes(planes.sign[1], d.tensors[6].data));
        for (size_t m = 0; m < 3; ++m) {
            const std::string matrix = d.tensors[8].data.substr(256 * m, 256);
            CHECK(same_bytes(experts.sign[0] + 256 * m, is_arranged ? transposed(matrix, 32, 8) : matrix));
        }
    }
}

// Opened for a model in the CPU's memory all weights are arranged, beside the hashing or, where nothing is hashed, afterwards.
static void test_opened_for_cpu() {
    const std::string bytes = delta_of_every_form().file();
    std::string       err;
    for (const auto digests : { delta_file::digest_check::always, delta_file::digest_check::once, delta_file::digest_check::none }) {
        for (const bool use_mmap : { false, true }) {
            check::begin("opened for the CPU");
            delta_file::options options;
            options.digests  = digests;
            options.use_mmap = use_mmap;
            const auto plain = open_bytes(bytes, err, options);
            options.on_cpu   = true;
            const auto delta = open_bytes(bytes, err, options);
            CHECK(plain != nullptr && delta != nullptr);
            if (!plain || !delta) {
                return;
            }
            std::vector<size_t> all;
            for (size_t i = 0; i < plain->weights().size(); ++i) {
                all.push_back(i);
                CHECK(delta->is_arranged(i) == (dqrelo_transposes_signs() && !use_mmap));
            }
            plain->arrange_signs(all, {});
            for (size_t i : all) {
                CHECK(memcmp(plain->data(i), delta->data(i), plain->weights()[i].n_bytes) == 0);
                CHECK(delta->entry(i).transposed == plain->entry(i).transposed);
            }
        }
    }
    check::begin("opened for the CPU/damaged");
    delta_file::options options = with_digests();
    options.on_cpu              = true;
    delta_builder d             = delta_of_every_form();
    d.tensors[0].data[5] ^= 1; // It has its old digest.
    CHECK(refused(d.file(), "does not have its declared SHA-256", options));
}

// Rows that are too long stay as they are, wherever they come from.
static void test_long_rows() {
    check::begin("rows that are too long");
    const uint64_t n_in = 8 * (DQRELO_TRANSPOSED_MAX_BYTES + 8);
    delta_builder  d;
    d.add_weight("long", { n_in, 16 }, 1, 0);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { n_in / 8, 16 }, std::string(n_in / 8 * 16, '\5'), { n_in, 16 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 1 }, std::string(4, '\0'));
    d.declare();
    std::string         err;
    delta_file::options options = with_digests();
    options.on_cpu              = true;
    const auto delta            = open_bytes(d.file(), err, options);
    CHECK(delta != nullptr);
    if (!delta) {
        printf("  %s\n", err.c_str());
        return;
    }
    delta->arrange_signs({ 0 }, {});
    CHECK(!delta->is_arranged(0) && delta->entry(0).transposed == 0);
}

// More than one piece, and more than one thread, each of which asks whether others decode.
static void test_pieces() {
    check::begin("pieces");
    const int64_t n_rows = 24 * 1024 + 7, row_bytes = 1000;
    std::string   signs((size_t) (n_rows * row_bytes), '\0');
    std::mt19937  rng(3);
    for (char & byte : signs) {
        byte = (char) rng();
    }
    const std::string want = transposed(signs, n_rows, row_bytes);
    dqrelo_entry      e    = {};
    e.n_in                 = 8 * row_bytes;
    e.n_out                = n_rows;
    e.n_mat                = 1;
    e.n_planes             = 1;
    e.sign[0]              = (const uint8_t *) signs.data();
    std::atomic<int> n_asked{ 0 };
    arrange_signs({ e }, [&] {
        n_asked++;
        return false;
    });
    CHECK(signs == want);
    CHECK(n_asked > 20);
}

// While a tensor is hashed, only what was hashed may change, and at its end all of its signs have.
static void test_may_change() {
    check::begin("signs that may change little by little");
    const int64_t n_rows = 1024 + 3, row_bytes = 1000, n_plane = n_rows * row_bytes, n_between = 64;
    std::string   bytes((size_t) (2 * n_plane + n_between), '\0');
    std::mt19937  rng(4);
    for (char & byte : bytes) {
        byte = (char) rng();
    }
    const std::string before = bytes;
    const char *      data   = bytes.data();
    dqrelo_entry      e      = {};
    e.n_in                   = 8 * row_bytes;
    e.n_out                  = n_rows;
    e.n_mat                  = 1;
    e.n_planes               = 2;
    e.sign[0]                = (const uint8_t *) data;
    e.sign[1]                = (const uint8_t *) data + n_plane + n_between;
    sign_arranging arranging({ e }, { data, data + n_plane, data + n_plane + n_between }); // Between the planes lies a tensor of no signs.
    for (const int64_t begin : { n_plane + n_between, n_plane, (int64_t) 0 }) {
        const int64_t n = begin == n_plane ? n_between : n_plane;
        for (int64_t n_hashed = 0; n_hashed <= n; n_hashed += n_hashed + 70000 > n && n_hashed < n ? n - n_hashed : 70000) {
            arranging.may_change(begin == 0 ? 0 : begin == n_plane ? 1 : 2, data + begin + n_hashed);
            CHECK(memcmp(data + begin + n_hashed, before.data() + begin + n_hashed, (size_t) (n - n_hashed)) == 0);
        }
    }
    const auto plane = [&](int64_t begin) { return transposed(before.substr((size_t) begin, (size_t) n_plane), n_rows, row_bytes); };
    CHECK(bytes == plane(0) + before.substr((size_t) n_plane, (size_t) n_between) + plane(n_plane + n_between));
}

int main() {
    test_delta_file(false);
    test_delta_file(true);
    test_opened_for_cpu();
    test_long_rows();
    test_pieces();
    test_may_change();
    remove(PATH);
    return check::finish();
}
