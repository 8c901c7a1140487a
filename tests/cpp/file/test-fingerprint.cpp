// test-fingerprint.cpp: base identity, docs/format.md section 6: the digest by hand, split files, other quantisations, other models.
#include "support/check.h"
#include "file/delta-file.h"
#include "file/fingerprint.h"
#include "support/gguf-builder.h"

#include <algorithm>
#include <cmath>

using namespace dqrelo;
using namespace testing;

static const char * const BASE  = "test-fingerprint-base.gguf";
static const char * const OTHER = "test-fingerprint-other.gguf";
static const char * const DELTA = "test-fingerprint.dq.gguf";

static const int64_t N_ROW = 256;

// Returns a model of 20 matrices and a norm, the same values in any type.
static gguf_builder model(ggml_type type, uint64_t seed) {
    gguf_builder m;
    m.set("general.architecture", std::string("llama"));
    m.set("general.name", std::string("a model"));
    m.set("general.alignment", uint32_t(ALIGNMENT));
    random_source r(seed);
    for (int i = 0; i < 20; ++i) {
        m.tensors.push_back({ "m" + std::to_string(i), type, { (uint64_t) N_ROW, 6 }, stored(r.values((size_t) N_ROW * 6), type, N_ROW) });
    }
    m.tensors.push_back({ "norm", GGML_TYPE_F32, { 24 }, bytes_of_all(r.values(24)) });
    return m;
}

static std::unique_ptr<base_file> open_base(const gguf_builder & m, const char * path = BASE) {
    write_file(path, m.file());
    std::string err;
    auto        base = base_file::open(path, err);
    if (!base) {
        printf("  %s\n", err.c_str());
    }
    return base;
}

// Returns a delta of one dense weight over `base`.
static std::unique_ptr<delta_file> delta_over(const base_file & base, const std::string & weight = "norm", uint64_t n = 24) {
    delta_builder d;
    d.add_weight(weight, { n }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F32, { n }, std::string(4 * n, '\0'));
    std::vector<float> samples;
    std::string        err;
    base.samples(base.sample_tensors(), samples, err);
    d.set("dqrelo.base.name", base.name());
    d.set("dqrelo.base.digest", base.digest());
    d.set("dqrelo.base.sample_tensors", base.sample_tensors());
    d.set("dqrelo.base.samples", samples);
    d.declare();
    write_file(DELTA, d.file());
    return delta_file::open(DELTA, {}, err);
}

static void test_digest() {
    check::begin("digest/as docs/format.md says");
    gguf_builder m    = model(GGML_TYPE_F32, 1);
    const auto   base = open_base(m);
    std::sort(m.tensors.begin(), m.tensors.end(), [](const tensor & a, const tensor & b) { return a.name < b.name; });
    std::string bytes;
    for (const tensor & t : m.tensors) {
        const bool norm = t.name == "norm";
        bytes += t.name + " f32 " + (norm ? "24x1x1x1" : "256x6x1x1") + "\n";
        if (norm) {
            bytes += t.data;
        }
        for (size_t c = 0; !norm && c < 8; ++c) {
            bytes += t.data.substr(c * (t.data.size() - 64) / 7, 64);
        }
    }
    CHECK(base && base->digest() == hash_sha256_hex(bytes.data(), bytes.size()));
    CHECK(base->name() == "a model" && base->architecture() == "llama");
    CHECK(base->shape("m3")[0] == N_ROW && base->shape("m3")[1] == 6 && base->shape("none") == nullptr);
}

static void test_samples() {
    check::begin("samples/names and places");
    const gguf_builder m    = model(GGML_TYPE_F32, 1);
    const auto         base = open_base(m);
    // The 20 matrices in byte order are m0 m1 m10 ... m19 m2 ... m9, and entry q is number q * 20 / 16.
    const std::vector<std::string> names = base->sample_tensors();
    CHECK(names.size() == 16 && names[0] == "m0" && names[1] == "m1" && names[2] == "m10" && names[4] == "m13" && names[15] == "m8");

    std::vector<float> samples;
    std::string        err;
    CHECK(base->samples({ "m10" }, samples, err) && samples.size() == 32);
    bool good = true;
    for (size_t t = 0; t < 32; ++t) {
        float expected;
        memcpy(&expected, &m.tensors[10].data[4 * ((2 * t + 1) * (size_t) N_ROW * 6 / 64)], sizeof(expected));
        good = good && samples[t] == expected;
    }
    CHECK(good);
    CHECK(!base->samples({ "none" }, samples, err) && err.find("'none'") != std::string::npos);
}

static void test_types() {
    const auto      f32     = open_base(model(GGML_TYPE_F32, 1));
    const auto      delta   = delta_over(*f32);
    const ggml_type types[] = { GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q2_K };
    check::begin("compare/same file");
    CHECK(delta && compare(*delta, *f32).match == base_match::same_file);
    for (ggml_type type : types) {
        check::begin((std::string("compare/same model in ") + ggml_type_name(type)).c_str());
        const auto            base = open_base(model(type, 1), OTHER);
        const base_comparison same = compare(*delta, *base);
        CHECK(same.match == base_match::same_model && same.correlation > 0.9);
        CHECK(same.reason.find("'a model'") != std::string::npos && same.reason.find('\n') == std::string::npos);
    }
}

static void test_other_models() {
    const auto base  = open_base(model(GGML_TYPE_F32, 1));
    const auto delta = delta_over(*base);

    check::begin("compare/other values");
    const auto            other = open_base(model(GGML_TYPE_F32, 2), OTHER);
    const base_comparison found = compare(*delta, *other);
    CHECK(found.match == base_match::other_model && std::fabs(found.correlation) < 0.5 && !found.reason.empty());

    check::begin("compare/missing tensor");
    gguf_builder m    = model(GGML_TYPE_F32, 1);
    m.tensors[0].name = "renamed";
    CHECK(compare(*delta, *open_base(m, OTHER)).match == base_match::other_model);

    check::begin("compare/NaN is another model");
    m = model(GGML_TYPE_F32, 1);
    m.tensors[3].data.assign(m.tensors[3].data.size(), '\xff');
    CHECK(compare(*delta, *open_base(m, OTHER)).match == base_match::other_model);
}

static void test_shapes() {
    check::begin("check_shapes");
    const auto  base = open_base(model(GGML_TYPE_F32, 1));
    std::string err;
    CHECK(check_shapes(*delta_over(*base), *base, err));
    CHECK(!check_shapes(*delta_over(*base, "none"), *base, err) && err.find("no tensor 'none'") != std::string::npos);
    CHECK(!check_shapes(*delta_over(*base, "norm", 25), *base, err) && err.find("'norm' is 24 there, expected 25") != std::string::npos);
    gguf_builder m = model(GGML_TYPE_F32, 1);
    m.set("general.architecture", std::string("qwen2"));
    CHECK(!check_shapes(*delta_over(*base), *open_base(m, OTHER), err) && err.find("architecture") != std::string::npos);
}

static void test_split() {
    check::begin("split/as one file");
    const gguf_builder whole   = model(GGML_TYPE_F32, 1);
    const std::string  digest  = open_base(whole)->digest();
    const char * const paths[] = { "test-fingerprint-00001-of-00002.gguf", "test-fingerprint-00002-of-00002.gguf" };
    for (uint16_t no = 0; no < 2; ++no) {
        gguf_builder part = whole;
        part.set("split.no", no);
        part.set("split.count", uint16_t(2));
        part.set("split.tensors.count", int32_t(whole.tensors.size()));
        part.tensors.assign(whole.tensors.begin() + (no ? 9 : 0), no ? whole.tensors.end() : whole.tensors.begin() + 9);
        write_file(paths[no], part.file());
    }
    std::string err;
    for (const char * path : paths) {
        const auto base = base_file::open(path, err);
        CHECK(base && base->digest() == digest && base->shape("m19"));
    }
    check::begin("split/missing, renamed");
    rename(paths[1], OTHER);
    CHECK(!base_file::open(paths[0], err) && err.find(paths[1]) != std::string::npos);
    CHECK(!base_file::open(OTHER, err) && err.find("is shard 2 of 2, expected 1 of 1") != std::string::npos);
    remove(paths[0]);
}

static void test_refusals() {
    check::begin("refusals");
    std::string       err;
    gguf_builder      m     = model(GGML_TYPE_F32, 1);
    const std::string bytes = m.file();
    write_file(OTHER, bytes.substr(0, bytes.size() - 200));
    CHECK(!base_file::open(OTHER, err) && err.find("Truncated download?") != std::string::npos);
    m.set("general.type", std::string("adapter"));
    write_file(OTHER, m.file());
    CHECK(!base_file::open(OTHER, err) && err.find("is an adapter") != std::string::npos);
}

static void test_correlation() {
    check::begin("correlation");
    random_source      r(3);
    std::vector<float> a = r.values(64);
    std::vector<float> b = a;
    CHECK(std::fabs(sample_correlation(a, b) - 1.0) < 1e-12);
    for (size_t i = 0; i < 32; ++i) {
        a[i] *= 1000.0f; // A scale of one group of both changes nothing.
        b[i] *= 1000.0f;
    }
    CHECK(std::fabs(sample_correlation(a, b) - 1.0) < 1e-12);
    std::fill(a.begin(), a.begin() + 32, 0.0f); // A group of zeros is left out, whatever the base has there.
    CHECK(std::fabs(sample_correlation(a, b) - 1.0) < 1e-12);
    std::fill(a.begin(), a.end(), 0.0f);
    CHECK(sample_correlation(a, b) == 0.0 && sample_correlation({}, {}) == 0.0);
}

int main() {
    test_digest();
    test_samples();
    test_types();
    test_other_models();
    test_shapes();
    test_split();
    test_refusals();
    test_correlation();
    for (const char * path : { BASE, OTHER, DELTA }) {
        remove(path);
    }
    return check::finish();
}
