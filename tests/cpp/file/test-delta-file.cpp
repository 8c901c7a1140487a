// test-delta-file.cpp: what the reader makes of a delta, and that it refuses what docs/format.md section 4 refuses.
// The longer list of malformed files is in tests/file/test_cpp_reader.py, where the Python reader is asked too.
#include "support/check.h"
#include "cpu/stack.h"
#include "file/delta-file.h"
#include "file/verified.h"
#include "support/gguf-builder.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <thread>

using namespace dqrelo;
using namespace testing;

static const char * const PATH = "test-delta-file.dq.gguf";

#include "support/open-delta.h"

static void test_entries() {
    check::begin("entries/paper");
    const delta_builder d = delta_of_every_form();
    std::string         err;
    const auto          delta = open_bytes(d.file(), err);
    CHECK(delta != nullptr);
    if (!delta) {
        printf("  %s\n", err.c_str());
        return;
    }
    dqrelo_entry entry = delta->entry(0);
    CHECK(entry.n_in == 64 && entry.n_out == 24 && entry.n_planes == 1 && entry.rank == 4 && entry.scale_per_row == 0);
    CHECK(same_bytes(entry.sign[0], d.tensors[0].data) && same_bytes(entry.scale[0], d.tensors[1].data));
    CHECK(entry.type_u == GGML_TYPE_F16 && same_bytes(entry.u, d.tensors[2].data) && same_bytes(entry.v, d.tensors[3].data));
    CHECK(entry.cscale == nullptr && entry.dense == nullptr && entry.sign[1] == nullptr);
    CHECK((uintptr_t) entry.sign[0] % 64 == 0 && (uintptr_t) entry.u % 64 == 0 && (uintptr_t) entry.v % 64 == 0);

    check::begin("entries/planes");
    entry = delta->entry(1);
    CHECK(entry.n_planes == 2 && entry.rank == 0 && entry.u == nullptr && entry.v == nullptr && entry.scale_per_row == 2);
    CHECK(same_bytes(entry.sign[1], d.tensors[6].data) && same_bytes(entry.scale[1], d.tensors[7].data));

    check::begin("entries/experts");
    const dqrelo_entry stack = delta->entry(2);
    CHECK(stack.n_mat == 3);
    for (int64_t e = 0; e < 3; ++e) {
        entry = dqrelo_entry_matrix(&stack, e);
        CHECK(same_bytes(entry.sign[0], d.tensors[8].data, 256 * (size_t) e, 256));
        CHECK(entry.scale_per_row == 1 && same_bytes(entry.scale[0], d.tensors[9].data, 128 * (size_t) e, 128));
        CHECK(same_bytes(entry.cscale, d.tensors[10].data, 256 * (size_t) e, 256));
        const size_t n_u = ggml_row_size(GGML_TYPE_Q8_0, 32) * 32;
        const size_t n_v = ggml_row_size(GGML_TYPE_Q8_0, 64) * 32;
        CHECK(entry.type_u == GGML_TYPE_Q8_0 && same_bytes(entry.u, d.tensors[11].data, n_u * (size_t) e, n_u));
        CHECK(entry.type_v == GGML_TYPE_Q8_0 && same_bytes(entry.v, d.tensors[12].data, n_v * (size_t) e, n_v));
    }

    check::begin("entries/dense");
    entry = delta->entry(3);
    CHECK(entry.n_in == 24 && entry.n_out == 1 && entry.n_planes == 0 && entry.type_dense == GGML_TYPE_F32 &&
          same_bytes(entry.dense, d.tensors[13].data));
    entry = delta->entry(4);
    CHECK(entry.n_mat == 2);
    entry = dqrelo_entry_matrix(&entry, 1);
    CHECK(entry.n_in == 3 && entry.n_out == 5 && entry.type_dense == GGML_TYPE_F16 && same_bytes(entry.dense, d.tensors[14].data, 30, 30));

    check::begin("entry_at/copy of the pack");
    const weight_info &  experts = delta->weights()[2];
    std::vector<uint8_t> copy(delta->data(2), delta->data(2) + experts.n_bytes);
    const dqrelo_entry   moved    = delta->entry_at(2, copy.data());
    const dqrelo_entry   there    = delta->entry(2);
    const std::ptrdiff_t distance = copy.data() - delta->data(2);
    CHECK(moved.sign[0] - there.sign[0] == distance && (const uint8_t *) moved.v - (const uint8_t *) there.v == distance);
    CHECK((const uint8_t *) moved.v + ggml_row_size(GGML_TYPE_Q8_0, 64) * 32 * 3 == copy.data() + copy.size());
}

// The parts of sign factors, and weights that have no planes.
static void test_new_entries() {
    check::begin("entries/sign factors");
    const delta_builder d = delta_of_every_new_form();
    std::string         err;
    const auto          delta = open_bytes(d.file(), err);
    CHECK(delta != nullptr);
    if (!delta) {
        printf("  %s\n", err.c_str());
        return;
    }
    dqrelo_entry entry = delta->entry(0);
    CHECK(entry.n_planes == 0 && entry.rank == 0 && entry.n_codes == 24 && entry.plane_ranks[0] == 13 && entry.plane_ranks[1] == 11 &&
          entry.plane_ranks[2] == 0 && entry.dense == nullptr && entry.sign[0] == nullptr && entry.u == nullptr);
    CHECK(same_bytes(entry.cscale, d.tensors[0].data) && same_bytes(entry.vsign, d.tensors[1].data) &&
          same_bytes(entry.vscale, d.tensors[2].data) && same_bytes(entry.usign, d.tensors[3].data) &&
          same_bytes(entry.uscale, d.tensors[4].data));
    CHECK(delta->weights()[0].n_codes == 24 && !delta->weights()[0].dense && delta->weights()[4].dense);

    check::begin("entries/planes, factors and sign factors");
    entry = delta->entry(1);
    CHECK(entry.n_planes == 1 && entry.rank == 4 && entry.n_codes == 40 && entry.plane_ranks[7] == 1 && entry.cscale == nullptr);
    CHECK(same_bytes(entry.sign[0], d.tensors[5].data) && same_bytes(entry.v, d.tensors[8].data) &&
          same_bytes(entry.vsign, d.tensors[9].data) && same_bytes(entry.uscale, d.tensors[12].data));

    check::begin("entries/sign factors of experts");
    const dqrelo_entry stack = delta->entry(2);
    for (size_t e = 0; e < 3; ++e) {
        entry = dqrelo_entry_matrix(&stack, (int64_t) e);
        CHECK(same_bytes(entry.vsign, d.tensors[13].data, 320 * e, 320) && same_bytes(entry.vscale, d.tensors[14].data, 80 * e, 80));
        CHECK(same_bytes(entry.usign, d.tensors[15].data, 160 * e, 160) && same_bytes(entry.uscale, d.tensors[16].data, 80 * e, 80));
    }

    check::begin("entries/factors alone");
    entry = delta->entry(3);
    CHECK(entry.n_planes == 0 && entry.rank == 4 && entry.n_codes == 0 && entry.vsign == nullptr && entry.uscale == nullptr);
    CHECK(same_bytes(entry.u, d.tensors[17].data) && same_bytes(entry.v, d.tensors[18].data));
}

static void test_facts() {
    check::begin("facts");
    delta_builder d = delta_of_every_form();
    d.set("tokenizer.chat_template", std::string("{{ messages }}"));
    d.set("tokenizer.ggml.eos_token_id", uint32_t(2));
    d.set("tokenizer.ggml.eot_token_id", uint32_t(7));
    d.set("tokenizer.ggml.eom_token_id", uint32_t(2));
    d.set("tokenizer.ggml.add_bos_token", true);
    d.set("general.sampling.temp", 0.7f);
    std::string err;
    const auto  delta = open_bytes(d.file(), err);
    CHECK(delta != nullptr);
    if (!delta) {
        return;
    }
    CHECK(delta->name() == "tuned" && delta->architecture() == "llama" && delta->base_name() == "base model");
    CHECK(delta->ratio() == 0.125 && delta->path() == PATH && delta->weights().size() == 5);
    size_t n_bytes = 0;
    for (const tensor & t : d.tensors) {
        n_bytes += t.data.size();
    }
    CHECK(delta->n_bytes() == n_bytes);
    CHECK(delta->find("experts") == 2 && delta->find("none") == -1);
    CHECK(delta->weights()[2].ne[2] == 3 && delta->weights()[2].ne[3] == 1 && delta->weights()[2].error_delta == 0.25f);
    CHECK(delta->chat_template() && *delta->chat_template() == "{{ messages }}");
    CHECK((delta->eog_tokens() == std::vector<int32_t>{ 2, 7 }));
    CHECK(*delta->meta_str("general.sampling.temp") == "0.7" && *delta->meta_str("dqrelo.version") == "1");
    CHECK(*delta->meta_str("tokenizer.ggml.add_bos_token") == "true" && *delta->meta_str("dqrelo.ratio") == "0.125");
    CHECK(!delta->meta_str("dqrelo.weight.names") && !delta->meta_str("none"));
}

static void test_digests() {
    check::begin("digests");
    const delta_builder d     = delta_of_every_form();
    std::string         bytes = d.file();
    std::string         err;
    CHECK(open_bytes(bytes, err, with_digests()) != nullptr);

    bytes[d.header().size() + 3] ^= 0x10;
    CHECK(open_bytes(bytes, err) != nullptr);
    CHECK(refused(bytes, "damaged: the data of 'paper.dq_sign'", with_digests()));

    delta_builder forged = delta_of_every_form();
    forged.set("dqrelo.content_hash", std::string(64, 'a'));
    CHECK(open_bytes(forged.file(), err) != nullptr);
    CHECK(refused(forged.file(), "dqrelo.content_hash", with_digests()));
}

// What was right once is not hashed again, unless it is asked for. No test changes a file without changing its identity, so this one says
// of a damaged file that it was right.
static void test_digests_once() {
    check::begin("digests/once");
    const delta_builder d     = delta_of_every_form();
    std::string         bytes = d.file();
    bytes[d.header().size() + 3] ^= 0x10;
    delta_file::options once;
    once.digests = delta_file::digest_check::once;
    CHECK(refused(bytes, "damaged", once)); // And it is not remembered as right:
    std::string err;
    CHECK(!delta_file::open(PATH, once, err));

    std::this_thread::sleep_for(std::chrono::seconds(4)); // A younger file has no identity.
    const std::string identity = mapped_file::open(PATH, mapped_file::mode::map, err)->identity();
    CHECK(!delta_file::open(PATH, once, err));
    remember_verified(identity);
    CHECK(identity.empty() || delta_file::open(PATH, once, err) != nullptr); // Windows tells none.
    CHECK(!delta_file::open(PATH, with_digests(), err));
    CHECK(refused(bytes, "damaged", once)); // A new file with the same bytes.
}

static void test_truncation() {
    check::begin("truncation at every byte");
    const std::string bytes = delta_of_every_form().file();
    bool              good  = true;
    for (size_t n = 0; n < bytes.size(); ++n) {
        std::string err;
        good = good && !open_bytes(bytes.substr(0, n), err) && !err.empty();
    }
    CHECK(good);
}

static void test_refusals() {
    check::begin("refusals/kind");
    delta_builder d = delta_of_every_form();
    d.set("general.type", std::string("model"));
    CHECK(refused(d.file(), "is a model"));
    d = delta_of_every_form();
    d.set("adapter.type", std::string("lora"));
    CHECK(refused(d.file(), "LoRA"));
    d = delta_of_every_form();
    d.set("dqrelo.version", uint32_t(3));
    CHECK(refused(d.file(), "delta file version 3, expected 1 or 2. Update dqrelo-gguf to read it"));

    check::begin("refusals/keys");
    const std::vector<std::string> must = { "general.name", "dqrelo.ratio", "dqrelo.content_hash", "dqrelo.weight.rank",
                                            "dqrelo.base.samples" };
    for (const std::string & key : must) {
        d = delta_of_every_form();
        d.remove(key);
        CHECK(refused(d.file(), "'" + key + "' is missing"));
        d.set(key, true);
        CHECK(refused(d.file(), "'" + key + "' has type BOOL"));
    }
    d = delta_of_every_form();
    d.set("general.name", std::string("\xff\xfe"));
    CHECK(refused(d.file(), "not UTF-8"));

    check::begin("refusals/tensors");
    d               = delta_of_every_form();
    d.tensors[0].ne = { 8, 25 };
    d.tensors[0].data.resize(8 * 25);
    d.declare();
    CHECK(refused(d.file(), "'paper.dq_sign' has shape 8x25, expected 8x24"));
    d = delta_of_every_form();
    std::swap(d.tensors[2], d.tensors[3]);
    d.declare();
    CHECK(refused(d.file(), "'paper.dq_u' is out of order"));
    d               = delta_of_every_form();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    memcpy(&d.tensors[7].data[8], &nan, sizeof(nan));
    CHECK(refused(d.file(), "'planes.dq_scale1' has 1 numbers that are NaN or infinite"));

    check::begin("refusals/hostile text stays one printable line");
    d = delta_of_every_form();
    d.set("adapter.type", std::string("a\nb\x1b[31m"));
    CHECK(refused(d.file(), "'a?b?[31m'"));
}

// A long tensor is read and hashed in pieces: whoever waits sees that it goes on, and can end it.
static void test_pieces() {
    check::begin("digests/pieces");
    delta_builder  d;
    const uint64_t n_rows = 9 << 10; // of 4 KiB: 36 MiB
    d.add_weight("table", { 1024, n_rows }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F32, { 1024, n_rows }, std::string(4096 * n_rows, '\1'));
    d.declare();
    const std::string   bytes = d.file();
    delta_file::options options;
    std::string         err;
    int                 n_reading = 0;
    options.is_aborted            = [&] { return n_reading++ > 1000; };
    CHECK(open_bytes(bytes, err, options) != nullptr && n_reading >= 10);

    options.digests = delta_file::digest_check::always;
    for (const int n_more : { 1, 5, n_reading }) { // The last one is asked when all is read.
        int n_asked        = 0;
        options.is_aborted = [&] { return n_asked++ >= n_more; };
        CHECK(refused(bytes, "nobody waits", options));
    }

#ifdef __linux__
    std::atomic<int> n_pieces{ 0 };
    options.is_aborted  = {};
    options.is_decoding = [&] {
        n_pieces++;
        return true;
    };
    CHECK(open_bytes(bytes, err, options) != nullptr && n_pieces >= 2 * 36); // Each MiB is read and hashed by threads that are paced.
#endif
}

// A weight's plane ranks, changed.
static std::string with_ranks(size_t weight, const std::vector<uint32_t> & ranks) {
    delta_builder d = delta_of_every_new_form();
    std::fill_n(d.plane_ranks.begin() + (ptrdiff_t) (8 * weight), 8, 0);
    std::copy(ranks.begin(), ranks.end(), d.plane_ranks.begin() + (ptrdiff_t) (8 * weight));
    d.declare();
    return d.file();
}

static void test_new_refusals() {
    check::begin("refusals/versions");
    delta_builder d = delta_of_every_form();
    d.set("dqrelo.weight.plane_ranks", std::vector<uint32_t>(8 * d.rank.size()));
    CHECK(refused(d.file(), "metadata key 'dqrelo.weight.plane_ranks' belongs to version 2"));
    d.set("dqrelo.version", uint32_t(2));
    CHECK(refused(d.file(), "is version 2 but has nothing that version 1 lacks, expected version 1"));
    d = delta_of_every_new_form();
    d.remove("dqrelo.weight.plane_ranks");
    CHECK(refused(d.file(), "metadata key 'dqrelo.weight.plane_ranks' is missing"));
    d.set("dqrelo.weight.plane_ranks", std::vector<uint64_t>(8 * d.rank.size()));
    CHECK(refused(d.file(), "metadata key 'dqrelo.weight.plane_ranks' has type [UINT64], expected [UINT32]"));
    d.set("dqrelo.weight.plane_ranks", std::vector<uint32_t>(7));
    CHECK(refused(d.file(), "metadata key 'dqrelo.weight.plane_ranks' has 7 items, expected 40"));

    check::begin("refusals/plane ranks");
    CHECK(refused(with_ranks(0, { 11, 13 }), "codes: plane ranks 11, 13 do not descend"));
    CHECK(refused(with_ranks(0, { 32 }), "codes: plane rank 32, expected at most 24, the smaller side of 64x24"));
    CHECK(refused(with_ranks(0, { 13, 10 }), "codes: 23 codes, expected a multiple of 8"));
    CHECK(refused(with_ranks(0, { 24, 24, 24, 24, 8 }), "codes: 104 codes, expected at most 96, four times the smaller side of 64x24"));
    CHECK(refused(with_ranks(0, { 8, 8 }), "'codes.dq_vsign' has shape 8x24, expected 8x16"));
    CHECK(refused(with_ranks(0, {}), "tensor 'codes.dq_dense' is missing"));
    CHECK(refused(with_ranks(4, { 8 }), "norm: shape 24 cannot have sign bits"));
    CHECK(refused(with_ranks(3, { 8 }), "tensor 'factors.dq_vsign' is missing"));

    check::begin("refusals/sign factors' tensors");
    d               = delta_of_every_new_form();
    d.logical_ne[4] = 8;
    d.declare();
    CHECK(refused(d.file(), "'codes.dq_vsign' is declared with shape 8x24x1x1, expected 64x24x1x1"));
    d                 = delta_of_every_new_form();
    d.tensors[2].type = GGML_TYPE_F16;
    CHECK(refused(d.file(), "'codes.dq_vscale' is stored as f16, expected bf16"));
    d = delta_of_every_new_form();
    d.tensors[4].data.replace(0, 2, "\x80\x7f", 2);
    CHECK(refused(d.file(), "'codes.dq_uscale' has 1 numbers that are NaN or infinite"));
}

int main() {
    test_pieces();
    test_entries();
    test_new_entries();
    test_facts();
    test_digests();
    test_digests_once();
    test_truncation();
    test_refusals();
    test_new_refusals();
    remove(PATH);
    return check::finish();
}
