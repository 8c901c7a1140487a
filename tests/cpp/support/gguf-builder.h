// gguf-builder.h: writes small GGUF files for tests, valid or with chosen faults.
#pragma once

#include "ggml.h"
#include "gguf.h"
#include "hash/hash.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace testing {

constexpr size_t ALIGNMENT = 64;

template <typename T>
std::string bytes_of(const T & value) {
    return std::string((const char *) &value, sizeof(T));
}

template <typename T>
std::string bytes_of_all(const std::vector<T> & values) {
    return std::string((const char *) values.data(), values.size() * sizeof(T));
}

inline std::string bytes_of_text(const std::string & text) {
    return bytes_of<uint64_t>(text.size()) + text;
}

inline std::string padded(std::string bytes) {
    bytes.resize((bytes.size() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, '\0');
    return bytes;
}

struct tensor {
    std::string           name;
    ggml_type             type;
    std::vector<uint64_t> ne;
    std::string           data;
};

// A GGUF file in the making. Keys keep their order; setting a key again replaces it.
struct gguf_builder {
    std::vector<std::pair<std::string, std::string>> keys; // Each value has its type in front.
    std::vector<tensor>                              tensors;

    void set_raw(const std::string & key, const std::string & value) {
        for (auto & entry : keys) {
            if (entry.first == key) {
                entry.second = value;
                return;
            }
        }
        keys.emplace_back(key, value);
    }

    void remove(const std::string & key) {
        for (size_t i = 0; i < keys.size(); ++i) {
            if (keys[i].first == key) {
                keys.erase(keys.begin() + (long) i);
                return;
            }
        }
    }

    void set(const std::string & key, const std::string & text) {
        set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_STRING) + bytes_of_text(text));
    }
    void set(const std::string & key, uint32_t n) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_UINT32) + bytes_of(n)); }
    void set(const std::string & key, uint16_t n) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_UINT16) + bytes_of(n)); }
    void set(const std::string & key, int32_t n) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_INT32) + bytes_of(n)); }
    void set(const std::string & key, float x) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_FLOAT32) + bytes_of(x)); }
    void set(const std::string & key, double x) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_FLOAT64) + bytes_of(x)); }
    void set(const std::string & key, bool b) { set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_BOOL) + bytes_of<uint8_t>(b)); }

    void set(const std::string & key, const std::vector<std::string> & texts) {
        std::string items;
        for (const std::string & text : texts) {
            items += bytes_of_text(text);
        }
        set_array(key, GGUF_TYPE_STRING, texts.size(), items);
    }
    void set(const std::string & key, const std::vector<uint32_t> & ns) { set_array(key, GGUF_TYPE_UINT32, ns.size(), bytes_of_all(ns)); }
    void set(const std::string & key, const std::vector<uint64_t> & ns) { set_array(key, GGUF_TYPE_UINT64, ns.size(), bytes_of_all(ns)); }
    void set(const std::string & key, const std::vector<float> & xs) { set_array(key, GGUF_TYPE_FLOAT32, xs.size(), bytes_of_all(xs)); }

    void set_array(const std::string & key, gguf_type type, uint64_t n, const std::string & items) {
        set_raw(key, bytes_of<uint32_t>(GGUF_TYPE_ARRAY) + bytes_of<uint32_t>(type) + bytes_of(n) + items);
    }

    // Header, padded; offsets follow from the tensors' data.
    std::string header() const {
        std::string out = "GGUF" + bytes_of<uint32_t>(3) + bytes_of<uint64_t>(tensors.size()) + bytes_of<uint64_t>(keys.size());
        for (const auto & entry : keys) {
            out += bytes_of_text(entry.first) + entry.second;
        }
        uint64_t offset = 0;
        for (const tensor & t : tensors) {
            out += bytes_of_text(t.name) + bytes_of<uint32_t>((uint32_t) t.ne.size()) + bytes_of_all(t.ne) + bytes_of<uint32_t>(t.type) +
                   bytes_of(offset);
            offset += padded(t.data).size();
        }
        return padded(out);
    }

    std::string file() const {
        std::string out = header();
        for (const tensor & t : tensors) {
            out += padded(t.data);
        }
        return out;
    }
};

// Writes `bytes` to `path`. A file that is there goes first: some file systems flush one that is cut to nothing and written anew.
inline void write_file(const std::string & path, const std::string & bytes) {
    remove(path.c_str());
    FILE * out = fopen(path.c_str(), "wb");
    fwrite(bytes.data(), 1, bytes.size(), out);
    fclose(out);
}

// Numbers that look random and are the same everywhere: xorshift64*.
struct random_source {
    uint64_t state;

    explicit random_source(uint64_t seed) : state(seed * 2685821657736338717ull + 1) {}

    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 2685821657736338717ull;
    }

    uint64_t below(uint64_t n) { return next() % n; }

    // Returns a value in [-1, 1).
    float value() { return (float) (next() >> 40) / (float) (1 << 23) - 1.0f; }

    std::vector<float> values(size_t n) {
        std::vector<float> out(n);
        for (float & x : out) {
            x = value();
        }
        return out;
    }

    std::string bytes(size_t n) {
        std::string out(n, '\0');
        for (char & c : out) {
            c = (char) next();
        }
        return out;
    }
};

// Returns values in the bytes of a storage type.
inline std::string stored(const std::vector<float> & values, ggml_type type, int64_t n_row) {
    if (type == GGML_TYPE_F32) {
        return bytes_of_all(values);
    }
    std::string out(ggml_row_size(type, (int64_t) values.size()), '\0');
    ggml_quantize_chunk(type, values.data(), &out[0], 0, (int64_t) values.size() / n_row, n_row, nullptr);
    return out;
}

// A delta file in the making: adds weights, and fills in all declarations.
struct delta_builder : gguf_builder {
    std::vector<std::string> types, weight_names;
    std::vector<uint64_t>    logical_ne, weight_ne, n_entries;
    std::vector<uint32_t>    rank, n_planes, plane_ranks;

    uint32_t version;

    explicit delta_builder(uint32_t version = 1) : version(version) {
        set("general.type", std::string("adapter"));
        set("general.architecture", std::string("llama"));
        set("general.alignment", uint32_t(ALIGNMENT));
        set("general.name", std::string("tuned"));
        set("adapter.type", std::string("dqrelo"));
        set("dqrelo.version", version);
        set("dqrelo.method", std::string("paper"));
        set("dqrelo.converter", std::string("test 1"));
        set("dqrelo.options", std::string("{}"));
        set("dqrelo.ratio", 0.125);
        set("dqrelo.reference", std::string("base"));
        set("dqrelo.base.name", std::string("base model"));
        set("dqrelo.base.digest", std::string(64, '0'));
        set("dqrelo.base.sample_tensors", std::vector<std::string>{});
        set("dqrelo.base.samples", std::vector<float>{});
    }

    static std::vector<uint64_t> four(std::vector<uint64_t> ne) {
        ne.resize(4, 1);
        return ne;
    }

    void add_weight(const std::string & name, const std::vector<uint64_t> & ne, uint32_t planes, uint32_t r) {
        weight_names.push_back(name);
        const std::vector<uint64_t> all = four(ne);
        weight_ne.insert(weight_ne.end(), all.begin(), all.end());
        n_planes.push_back(planes);
        rank.push_back(r);
        plane_ranks.resize(plane_ranks.size() + 8);
        n_entries.push_back(0);
    }

    // Adds a tensor of the last weight; `logical` is empty where it is the stored shape.
    void add_tensor(const std::string & suffix, const std::string & declared, ggml_type type, const std::vector<uint64_t> & ne,
                    const std::string & data, const std::vector<uint64_t> & logical = {}) {
        tensors.push_back({ weight_names.back() + suffix, type, ne, data });
        types.push_back(declared);
        const std::vector<uint64_t> all = four(logical.empty() ? ne : logical);
        logical_ne.insert(logical_ne.end(), all.begin(), all.end());
    }

    // Adds the sign factors of the last weight, [n_in, n_out] or [n_in, n_out, n_mat], which it has one plane of each of `ranks`.
    void add_codes(const std::vector<uint32_t> & ranks, random_source & r) {
        const uint64_t * ne      = &weight_ne[weight_ne.size() - 4];
        const uint64_t   n_codes = std::accumulate(ranks.begin(), ranks.end(), (uint64_t) 0);
        std::copy(ranks.begin(), ranks.end(), plane_ranks.end() - 8);
        const auto scales = [&] { return stored(r.values(n_codes * ne[2]), GGML_TYPE_BF16, (int64_t) n_codes); };
        add_tensor(".dq_vsign", "DQ_VSIGN", GGML_TYPE_I8, { ne[0] / 8, n_codes, ne[2] }, r.bytes(ne[0] / 8 * n_codes * ne[2]),
                   { ne[0], n_codes, ne[2] });
        add_tensor(".dq_vscale", "DQ_VSCALE", GGML_TYPE_BF16, { n_codes, ne[2] }, scales());
        add_tensor(".dq_usign", "DQ_USIGN", GGML_TYPE_I8, { n_codes / 8, ne[1], ne[2] }, r.bytes(n_codes / 8 * ne[1] * ne[2]),
                   { n_codes, ne[1], ne[2] });
        add_tensor(".dq_uscale", "DQ_USCALE", GGML_TYPE_BF16, { n_codes, ne[2] }, scales());
    }

    // Declares what was added; call it before header() or file(), once more after changes.
    void declare() {
        std::vector<std::string> names, sha256;
        std::string              lines;
        for (size_t i = 0; i < tensors.size(); ++i) {
            const uint64_t * ne = &logical_ne[4 * i];
            names.push_back(tensors[i].name);
            sha256.push_back(hash_sha256_hex(tensors[i].data.data(), tensors[i].data.size()));
            lines += names.back() + " " + types[i] + " " + ggml_type_name(tensors[i].type) + " " + std::to_string(ne[0]) + "x" +
                     std::to_string(ne[1]) + "x" + std::to_string(ne[2]) + "x" + std::to_string(ne[3]) + " " + sha256.back() + "\n";
        }
        set("dqrelo.content_hash", hash_sha256_hex(lines.data(), lines.size()));
        set("dqrelo.tensor.names", names);
        set("dqrelo.tensor.types", types);
        set("dqrelo.tensor.ne", logical_ne);
        set("dqrelo.tensor.sha256", sha256);
        set("dqrelo.weight.names", weight_names);
        set("dqrelo.weight.ne", weight_ne);
        set("dqrelo.weight.rank", rank);
        set("dqrelo.weight.n_planes", n_planes);
        if (version > 1) {
            set("dqrelo.weight.plane_ranks", plane_ranks);
        }
        if (std::any_of(n_entries.begin(), n_entries.end(), [](uint64_t n) { return n > 0; })) {
            set("dqrelo.weight.n_entries", n_entries);
        }
        set("dqrelo.weight.error_delta", std::vector<float>(rank.size(), 0.25f));
        set("dqrelo.weight.error_weight", std::vector<float>(rank.size(), 0.125f));
    }
};

// Returns a delta with one weight of each form. Matrix "paper": 64x24, one plane, one scale, rank 4 in F16; "planes": 32x16, two planes,
// the second with a scale per row, no factors; "experts": 64x32x3 with column scales and Q8_0 factors of rank 32; "norm" and "table":
// dense.
inline delta_builder delta_of_every_form() {
    delta_builder d;
    random_source r(1);
    d.add_weight("paper", { 64, 24 }, 1, 4);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { 8, 24 }, r.bytes(8 * 24), { 64, 24 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 1 }, bytes_of_all(r.values(1)));
    d.add_tensor(".dq_u", "DQ_U", GGML_TYPE_F16, { 4, 24 }, stored(r.values(4 * 24), GGML_TYPE_F16, 4));
    d.add_tensor(".dq_v", "DQ_V", GGML_TYPE_F16, { 64, 4 }, stored(r.values(64 * 4), GGML_TYPE_F16, 64));

    d.add_weight("planes", { 32, 16 }, 2, 0);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { 4, 16 }, r.bytes(4 * 16), { 32, 16 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 1 }, bytes_of_all(r.values(1)));
    d.add_tensor(".dq_sign1", "DQ_SIGN", GGML_TYPE_I8, { 4, 16 }, r.bytes(4 * 16), { 32, 16 });
    d.add_tensor(".dq_scale1", "DQ_SCALE", GGML_TYPE_F32, { 16 }, bytes_of_all(r.values(16)));

    d.add_weight("experts", { 64, 32, 3 }, 1, 32);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { 8, 32, 3 }, r.bytes(8 * 32 * 3), { 64, 32, 3 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 32, 3 }, bytes_of_all(r.values(32 * 3)));
    d.add_tensor(".dq_cscale", "DQ_CSCALE", GGML_TYPE_F32, { 64, 3 }, bytes_of_all(r.values(64 * 3)));
    d.add_tensor(".dq_u", "DQ_U", GGML_TYPE_Q8_0, { 32, 32, 3 }, stored(r.values(32 * 32 * 3), GGML_TYPE_Q8_0, 32));
    d.add_tensor(".dq_v", "DQ_V", GGML_TYPE_Q8_0, { 64, 32, 3 }, stored(r.values(64 * 32 * 3), GGML_TYPE_Q8_0, 64));

    d.add_weight("norm", { 24 }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F32, { 24 }, bytes_of_all(r.values(24)));
    d.add_weight("table", { 3, 5, 2 }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F16, { 3, 5, 2 }, stored(r.values(30), GGML_TYPE_F16, 3));
    d.declare();
    return d;
}

// A delta with one weight of each form that version 2 brought, and a dense one. Matrix "codes": 64x24, sign factors of 2 planes and a scale
// a column; "all": 32x16, one plane, rank 4 in F16 and sign factors of 8 planes; "experts": 64x32x3, sign factors; "factors": 64x24, rank 4
// in F16 alone. It has a quality record.
inline delta_builder delta_of_every_new_form() {
    delta_builder d(2);
    random_source r(2);
    d.add_weight("codes", { 64, 24 }, 0, 0);
    d.add_tensor(".dq_cscale", "DQ_CSCALE", GGML_TYPE_F32, { 64 }, bytes_of_all(r.values(64)));
    d.add_codes({ 13, 11 }, r);

    d.add_weight("all", { 32, 16 }, 1, 4);
    d.add_tensor(".dq_sign", "DQ_SIGN", GGML_TYPE_I8, { 4, 16 }, r.bytes(4 * 16), { 32, 16 });
    d.add_tensor(".dq_scale", "DQ_SCALE", GGML_TYPE_F32, { 1 }, bytes_of_all(r.values(1)));
    d.add_tensor(".dq_u", "DQ_U", GGML_TYPE_F16, { 4, 16 }, stored(r.values(4 * 16), GGML_TYPE_F16, 4));
    d.add_tensor(".dq_v", "DQ_V", GGML_TYPE_F16, { 32, 4 }, stored(r.values(32 * 4), GGML_TYPE_F16, 32));
    d.add_codes({ 16, 9, 4, 3, 3, 3, 1, 1 }, r);

    d.add_weight("experts", { 64, 32, 3 }, 0, 0);
    d.add_codes({ 32, 8 }, r);

    d.add_weight("factors", { 64, 24 }, 0, 4);
    d.add_tensor(".dq_u", "DQ_U", GGML_TYPE_F16, { 4, 24 }, stored(r.values(4 * 24), GGML_TYPE_F16, 4));
    d.add_tensor(".dq_v", "DQ_V", GGML_TYPE_F16, { 64, 4 }, stored(r.values(64 * 4), GGML_TYPE_F16, 64));

    d.add_weight("norm", { 24 }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F32, { 24 }, bytes_of_all(r.values(24)));
    d.declare();
    d.set("dqrelo.quality.evaluator", std::string("dqrelo-eval 0.1.0"));
    d.set("dqrelo.quality.tuned_sha256", std::string(64, 'a'));
    d.set("dqrelo.quality.base_digest", std::string(64, 'b'));
    d.set("dqrelo.quality.problems", std::string("math.jsonl"));
    d.set("dqrelo.quality.problems_sha256", std::string(64, 'c'));
    d.set("dqrelo.quality.n_problems", uint32_t(300));
    d.set("dqrelo.quality.retention", 0.98);
    d.set("dqrelo.quality.retention_low", 0.95);
    d.set("dqrelo.quality.retention_high", 1.0);
    return d;
}

} // namespace testing
