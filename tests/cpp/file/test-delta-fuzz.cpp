// test-delta-fuzz.cpp: thousands of damaged files, in a fixed order. Each is refused with one line, or opens and can be read to the last
// byte. Built with AddressSanitizer over heap-file.cpp, so that reading one byte too many ends the test.
#include "support/check.h"
#include "cpu/stack.h"
#include "file/delta-file.h"
#include "file/fingerprint.h"
#include "support/gguf-builder.h"
#include "support/sparse-builder.h"

#include <algorithm>

using namespace dqrelo;
using namespace testing;

static const char * const PATH    = "test-delta-fuzz.gguf";
static const int          N_CASES = 5000; // cases of each kind; all take about five seconds with sanitizers

// Numbers that counts, lengths, types and offsets are tried with.
static const uint64_t EXTREMES[] = {
    0, 1, 7, 63, 255, 65536, 0x7fffffff, 0xffffffff, 1ull << 32, 1ull << 40, (1ull << 62) - 1, 1ull << 63, ~0ull - 63, ~0ull
};

static std::string damage(std::string bytes, size_t n_header, random_source & r) {
    // The header is where the decisions are, so only a small part of the cases damages data.
    const size_t n = r.below(8) ? n_header : bytes.size();
    switch (r.below(6)) {
        case 0: // Some bits are flipped.
            for (uint64_t i = 0; i <= r.below(4); ++i) {
                bytes[r.below(n)] ^= (char) (1 << r.below(8));
            }
            break;
        case 1: // Some bytes are changed.
            for (uint64_t i = 0; i <= r.below(8); ++i) {
                bytes[r.below(n)] = (char) r.next();
            }
            break;
        case 2: // A number is replaced.
        case 3: {
            const uint64_t value   = EXTREMES[r.below(sizeof(EXTREMES) / sizeof(EXTREMES[0]))];
            const size_t   n_value = r.below(2) ? 8 : 4;
            memcpy(&bytes[r.below(n - 8)], &value, n_value);
            break;
        }
        case 4: // The end is cut off.
            bytes.resize(r.below(bytes.size()));
            break;
        case 5: { // There is a piece too many or too few.
            const size_t at = r.below(n);
            if (r.below(2)) {
                bytes.insert(at, bytes.substr(r.below(n), r.below(64)));
            } else {
                bytes.erase(at, r.below(64));
            }
            break;
        }
    }
    return bytes;
}

// Reads what the places of entries say that there is, and fails where a column lies outside its row.
template <typename F>
static void touch_entries(const dqrelo_entry & entry, F touch) {
    const int64_t n_blocks = (entry.n_in + 255) / 256;
    for (int64_t i = 0; entry.entries && i < entry.n_out; ++i) {
        int64_t n = 0;
        for (int64_t j = 0; entry.mask && j < entry.n_in; ++j) {
            n += entry.mask[i * (entry.n_in / 8) + j / 8] >> (j % 8) & 1;
        }
        for (int64_t b = 0; entry.count && b < n_blocks; ++b) {
            for (int k = 0; k < entry.count[i * n_blocks + b]; ++k, ++n) {
                CHECK(256 * b + entry.column[entry.start[i] + n] < entry.n_in);
            }
        }
        const size_t n_value = entry.type_entries == GGML_TYPE_I8 ? 1 : 2;
        if (n > 0) {
            touch((const uint8_t *) entry.entries + n_value * (size_t) entry.start[i], n_value * (size_t) n);
        }
        touch(entry.escale, sizeof(float) * (size_t) entry.n_out);
    }
}

static void read_all(const delta_file & delta) {
    for (const std::string & key : delta.meta_keys()) {
        delta.meta_str(key);
    }
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < delta.weights().size(); ++i) {
        const weight_info & weight = delta.weights()[i];
        const dqrelo_entry  stack  = delta.entry(i);
        for (int64_t e = 0; e < stack.n_mat; ++e) {
            const dqrelo_entry entry = dqrelo_entry_matrix(&stack, e);
            const auto         touch = [&](const void * data, size_t n_bytes) {
                const uint8_t * p = (const uint8_t *) data;
                sink              = p ? (uint8_t) (sink + p[0] + p[n_bytes - 1]) : sink;
            };
            for (int32_t k = 0; k < entry.n_planes; ++k) {
                touch(entry.sign[k], (size_t) (entry.n_in / 8 * entry.n_out));
                touch(entry.scale[k], sizeof(float) * (size_t) (entry.scale_per_row >> k & 1 ? entry.n_out : 1));
            }
            touch(entry.cscale, sizeof(float) * (size_t) entry.n_in);
            touch(entry.u, ggml_row_size((ggml_type) entry.type_u, entry.rank) * (size_t) entry.n_out);
            touch(entry.v, ggml_row_size((ggml_type) entry.type_v, entry.n_in) * (size_t) entry.rank);
            touch(entry.vsign, (size_t) (entry.n_in / 8 * entry.n_codes));
            touch(entry.vscale, sizeof(uint16_t) * (size_t) entry.n_codes);
            touch(entry.usign, (size_t) (entry.n_codes / 8 * entry.n_out));
            touch(entry.uscale, sizeof(uint16_t) * (size_t) entry.n_codes);
            touch_entries(entry, touch);
            touch(entry.dense, ggml_row_size((ggml_type) entry.type_dense, entry.n_in) * (size_t) entry.n_out);
        }
    }
}

static bool one_line(const std::string & err) {
    return !err.empty() && std::none_of(err.begin(), err.end(), [](char c) { return (unsigned char) c < 0x20; });
}

// A wrong declaration or tensor in an otherwise sound file: damage of bytes rarely gets this far.
static void edit(delta_builder & d, random_source & r) {
    const uint64_t small   = r.below(70);
    const uint64_t extreme = EXTREMES[r.below(sizeof(EXTREMES) / sizeof(EXTREMES[0]))];
    const uint64_t number  = r.below(3) ? small : extreme;
    tensor &       t       = d.tensors[r.below(d.tensors.size())];
    switch (r.below(13)) {
        case 0: d.weight_ne[r.below(d.weight_ne.size())] = number; break;
        case 1: d.rank[r.below(d.rank.size())] = (uint32_t) number; break;
        case 2: d.n_planes[r.below(d.n_planes.size())] = (uint32_t) r.below(7); break;
        case 3: d.logical_ne[r.below(d.logical_ne.size())] = number; break;
        case 4: t.ne[r.below(t.ne.size())] = number; break;
        case 5: t.data.resize(r.below(2 * t.data.size() + 1)); break;
        case 6: t.type = (ggml_type) r.below(GGML_TYPE_COUNT); break;
        case 7: std::swap(t, d.tensors[r.below(d.tensors.size())]); break;
        case 8: d.plane_ranks[r.below(d.plane_ranks.size())] = (uint32_t) number; break;
        case 9: d.n_entries[r.below(d.n_entries.size())] = number; break;
        case 10: // a byte of data that says where something lies, or nothing
        case 11: t.data[r.below(t.data.size())] = (char) r.next(); break;
        case 12: { // another shape of the same size
            const size_t i = r.below(t.ne.size());
            const size_t j = r.below(t.ne.size());
            if (t.ne[i] % 2 == 0) {
                t.ne[i] /= 2;
                t.ne[j] *= 2;
            }
            break;
        }
    }
    d.declare();
    const char * const keys[] = { "dqrelo.weight.ne",          "dqrelo.tensor.ne",    "dqrelo.weight.rank",     "dqrelo.weight.n_planes",
                                  "dqrelo.weight.plane_ranks", "dqrelo.tensor.types", "dqrelo.weight.n_entries" };
    if (r.below(4) == 0) { // an array that is too short or of another kind
        const char * key = keys[r.below(sizeof(keys) / sizeof(keys[0]))];
        if (r.below(2)) {
            d.set(key, std::vector<uint32_t>(r.below(20), 1));
        } else {
            d.set(key, std::vector<uint64_t>(r.below(20), 1));
        }
    }
}

// Counts the files that opened, and those that were refused without a proper line.
struct outcome {
    int n_opened = 0;
    int n_silent = 0;

    void open(const std::string & bytes) {
        write_file(PATH, bytes);
        std::string err;
        const auto  delta = delta_file::open(PATH, {}, err);
        n_opened += delta != nullptr;
        n_silent += !delta && !one_line(err);
        if (delta) {
            read_all(*delta);
            delta_file::options options;
            options.digests = delta_file::digest_check::always;
            n_silent += !delta_file::open(PATH, options, err) && !one_line(err);
        }
    }
};

static void test_damaged_deltas(const delta_builder & valid) {
    check::begin(("deltas/damaged bytes/version=" + std::to_string(valid.version)).c_str());
    const std::string bytes  = valid.file();
    const size_t      n_head = valid.header().size();
    random_source     r(1);
    outcome           out;
    for (int i = 0; i < N_CASES; ++i) {
        out.open(damage(bytes, n_head, r));
    }
    printf("  %d of %d opened\n", out.n_opened, N_CASES);
    CHECK(out.n_silent == 0);
    // Some damage does no harm. If none opened, the sound file itself would be refused.
    CHECK(out.n_opened > 0 && out.n_opened < N_CASES / 2);
}

static void test_edited_deltas(const delta_builder & valid) {
    check::begin(("deltas/wrong declarations/version=" + std::to_string(valid.version)).c_str());
    random_source r(4);
    outcome       out;
    for (int i = 0; i < N_CASES; ++i) {
        delta_builder d = valid;
        for (uint64_t n = 0; n <= r.below(2); ++n) {
            edit(d, r);
        }
        out.open(d.file());
    }
    printf("  %d of %d opened\n", out.n_opened, N_CASES);
    CHECK(out.n_silent == 0);
    // Some damage does no harm. If none opened, the sound file itself would be refused.
    CHECK(out.n_opened > 0 && out.n_opened < N_CASES / 2);
}

static void test_bases() {
    check::begin("bases");
    gguf_builder m;
    m.set("general.architecture", std::string("llama"));
    m.set("general.alignment", uint32_t(ALIGNMENT));
    m.set("tokenizer.ggml.tokens", std::vector<std::string>{ "a", "b", "\xff" });
    random_source r(2);
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K }) {
        m.tensors.push_back({ std::string("t.") + ggml_type_name(type), type, { 256, 4 }, stored(r.values(1024), type, 256) });
    }
    const std::string bytes    = m.file();
    const size_t      n_head   = m.header().size();
    int               n_silent = 0;
    for (int i = 0; i < N_CASES; ++i) {
        write_file(PATH, damage(bytes, n_head, r));
        std::string err;
        const auto  base = base_file::open(PATH, err);
        n_silent += !base && !one_line(err);
        if (base) {
            std::vector<float> samples;
            base->samples(base->sample_tensors(), samples, err);
        }
    }
    CHECK(n_silent == 0);
}

int main() {
    for (const delta_builder & valid : { delta_of_every_form(), delta_of_every_new_form(), delta_of_sparse_weights() }) {
        test_damaged_deltas(valid);
        test_edited_deltas(valid);
    }
    test_bases();
    remove(PATH);
    return check::finish();
}
