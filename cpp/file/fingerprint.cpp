#include "file/fingerprint.h"

#include "file/delta-keys.h"
#include "file/gguf-header.h"
#include "hash/hash.h"
#include "file/mapped-file.h"
#include "file/message.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <unordered_map>

namespace dqrelo {

namespace {

// The numbers come from docs/format.md, section 6.
constexpr size_t N_CHUNKS         = 8;
constexpr size_t N_CHUNK_BYTES    = 64;
constexpr size_t N_SAMPLE_TENSORS = 16;

// Largest block of any type to_float is asked for: K-quants have 256 elements.
constexpr int64_t MAX_BLOCK_ELEMENTS = 256;

struct shard {
    std::unique_ptr<mapped_file> file;
    gguf_header                  header;
};

// A tensor of the base and its bytes in the mapping.
struct base_tensor {
    const gguf_tensor_entry * info;
    const uint8_t *           data;
};

// Returns an integer of the metadata, whichever of GGUF's integer types it has.
int64_t get_integer(const gguf_header & header, const std::string & key, int64_t absent) {
    const gguf_entry * entry = header.find(key);
    return entry == nullptr || entry->is_array ? absent : strtoll(scalar_text(*entry).c_str(), nullptr, 10);
}

// Returns all files of a model: the given one, or every shard of PREFIX-00001-of-0000N.gguf, as llama.cpp names them.
std::vector<std::string> shard_paths(const std::string & path) {
    const std::string form = "-00000-of-00000.gguf"; // A 0 stands for any digit.
    if (path.size() <= form.size()) {
        return { path };
    }
    const std::string prefix = path.substr(0, path.size() - form.size());
    const std::string ending = path.substr(prefix.size());
    for (size_t i = 0; i < form.size(); ++i) {
        const bool good = form[i] == '0' ? ending[i] >= '0' && ending[i] <= '9' : ending[i] == form[i];
        if (!good) {
            return { path };
        }
    }
    std::vector<std::string> paths;
    const int                n = atoi(ending.c_str() + form.size() - strlen("00000.gguf"));
    for (int i = 1; i <= n; ++i) {
        paths.push_back(prefix + message("-%05d-of-%05d.gguf", i, n));
    }
    return paths.empty() ? std::vector<std::string>{ path } : paths;
}

bool open_shard(const std::string & path, int64_t number, int64_t n_shards, shard & out, std::string & err) {
    std::string reason;
    out.file = mapped_file::open(path, mapped_file::mode::map, reason);
    if (!out.file && n_shards > 1) {
        reason += message(" (%" PRId64 " shards belong to this model)", n_shards);
    }
    if (out.file && parse_gguf_header(out.file->data(), out.file->n_bytes(), out.header, reason)) {
        out.file->expect_random_access();
        const int64_t n  = get_integer(out.header, "split.count", 1);
        const int64_t no = get_integer(out.header, "split.no", 0);
        if ((n == n_shards && no == number) || (n <= 1 && n_shards <= 1)) {
            return true;
        }
        reason = message("is shard %" PRId64 " of %" PRId64 ", expected %" PRId64 " of %" PRId64 ". Was it renamed?", no + 1, n, number + 1,
                         n_shards);
    }
    err = path + ": " + reason;
    return false;
}

// File name without directory and without a .gguf ending.
std::string file_stem(const std::string & path) {
    const size_t slash = path.find_last_of("/\\");
    std::string  name  = slash == std::string::npos ? path : path.substr(slash + 1);
    const size_t dot   = name.rfind('.');
    return dot == std::string::npos || dot == 0 ? name : name.substr(0, dot);
}

bool is_matrix(const int64_t ne[4]) {
    return std::count_if(ne, ne + 4, [](int64_t n) { return n > 1; }) >= 2;
}

int64_t n_elements(const gguf_tensor_entry & tensor) {
    return tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
}

template <typename T>
float load_as_float(const uint8_t * data, int64_t i) {
    T value;
    memcpy(&value, data + i * sizeof(T), sizeof(T));
    return (float) value;
}

// Element at flat index i, dequantised. NaN for a type that has no values.
float element(const base_tensor & tensor, int64_t i) {
    switch (tensor.info->type) {
        case GGML_TYPE_F32: return load_as_float<float>(tensor.data, i);
        case GGML_TYPE_F64: return load_as_float<double>(tensor.data, i);
        case GGML_TYPE_I8: return load_as_float<int8_t>(tensor.data, i);
        case GGML_TYPE_I16: return load_as_float<int16_t>(tensor.data, i);
        case GGML_TYPE_I32: return load_as_float<int32_t>(tensor.data, i);
        case GGML_TYPE_I64: return load_as_float<int64_t>(tensor.data, i);
        default: break;
    }
    const ggml_type_traits * traits = ggml_get_type_traits(tensor.info->type);
    if (traits->to_float == nullptr || traits->blck_size > MAX_BLOCK_ELEMENTS) {
        return std::numeric_limits<float>::quiet_NaN();
    }
    // A row is a whole number of blocks, so flat index / block size is the block's number in the whole tensor.
    // The block is copied: file offsets promise 32-byte alignment of tensors, not of blocks, which to_float reads as structs.
    alignas(32) uint8_t block[4 * MAX_BLOCK_ELEMENTS];
    float               values[MAX_BLOCK_ELEMENTS];
    memcpy(block, tensor.data + (size_t) (i / traits->blck_size) * traits->type_size, traits->type_size);
    traits->to_float(block, values, traits->blck_size);
    return values[i % traits->blck_size];
}

} // namespace

struct base_file::impl {
    std::string                                  path, architecture, name, digest;
    std::vector<shard>                           shards;
    std::vector<base_tensor>                     tensors; // Sorted by name, in ascending byte order.
    std::unordered_map<std::string, base_tensor> index;

    bool open_shards(std::string & err);
    bool collect(std::string & err);
    void compute_digest();
};

bool base_file::impl::open_shards(std::string & err) {
    const std::vector<std::string> paths = shard_paths(path);
    shards.resize(paths.size());
    for (size_t i = 0; i < paths.size(); ++i) {
        if (!open_shard(paths[i], (int64_t) i, (int64_t) paths.size(), shards[i], err)) {
            return false;
        }
    }
    const gguf_header & first = shards.front().header;
    std::string         type;
    if (first.get("general.type", type) && type == "adapter") {
        err = path + ": is an adapter, expected a model";
        return false;
    }
    if (!first.get("general.architecture", architecture) || architecture.empty()) {
        err = path + ": has no general.architecture, expected a model";
        return false;
    }
    return true;
}

bool base_file::impl::collect(std::string & err) {
    for (const shard & part : shards) {
        for (const gguf_tensor_entry & info : part.header.tensors) {
            const base_tensor tensor = { &info, part.file->data() + part.header.data_offset_bytes + info.offset_bytes };
            if (!index.emplace(info.name, tensor).second) {
                err = message("%s: tensor '%s': is in two files of the split model", path.c_str(), printable(info.name).c_str());
                return false;
            }
            tensors.push_back(tensor);
        }
    }
    const int64_t n_declared = get_integer(shards.front().header, "split.tensors.count", (int64_t) tensors.size());
    if (n_declared != (int64_t) tensors.size()) {
        err = message("%s: its shards have %zu tensors, expected %" PRId64, path.c_str(), tensors.size(), n_declared);
        return false;
    }
    std::sort(tensors.begin(), tensors.end(), [](const base_tensor & a, const base_tensor & b) { return a.info->name < b.info->name; });
    return true;
}

void base_file::impl::compute_digest() {
    std::string bytes;
    bytes.reserve(tensors.size() * (N_CHUNKS * N_CHUNK_BYTES + 64));
    for (const base_tensor & tensor : tensors) {
        const size_t n = tensor.info->n_bytes;
        bytes += tensor.info->name + " " + storage_name(tensor.info->type) + " " + full_shape_text(tensor.info->ne) + "\n";
        if (n <= N_CHUNKS * N_CHUNK_BYTES) {
            bytes.append((const char *) tensor.data, n);
            continue;
        }
        for (size_t c = 0; c < N_CHUNKS; ++c) {
            bytes.append((const char *) tensor.data + c * (n - N_CHUNK_BYTES) / (N_CHUNKS - 1), N_CHUNK_BYTES);
        }
    }
    digest = hash_sha256_hex(bytes.data(), bytes.size());
}

std::unique_ptr<base_file> base_file::open(const std::string & path, std::string & err) {
    std::unique_ptr<impl> p(new impl());
    p->path = path;
    if (!p->open_shards(err) || !p->collect(err)) {
        return nullptr;
    }
    if (!p->shards.front().header.get("general.name", p->name) || p->name.empty()) {
        p->name = file_stem(path);
    }
    p->compute_digest();
    return std::unique_ptr<base_file>(new base_file(std::move(p)));
}

base_file::base_file(std::unique_ptr<impl> p) : p(std::move(p)) {}

base_file::~base_file() = default;

const std::string & base_file::path() const {
    return p->path;
}
const std::string & base_file::architecture() const {
    return p->architecture;
}
const std::string & base_file::name() const {
    return p->name;
}
const std::string & base_file::digest() const {
    return p->digest;
}

int64_t base_file::n_tokens() const {
    const gguf_entry * entry = p->shards.front().header.find("tokenizer.ggml.tokens");
    return entry != nullptr && entry->is_array ? (int64_t) entry->n : 0;
}

const int64_t * base_file::shape(const std::string & tensor) const {
    const auto it = p->index.find(tensor);
    return it == p->index.end() ? nullptr : it->second.info->ne;
}

std::vector<std::string> base_file::sample_tensors() const {
    std::vector<const base_tensor *> matrices;
    for (const base_tensor & tensor : p->tensors) {
        if (is_matrix(tensor.info->ne)) {
            matrices.push_back(&tensor);
        }
    }
    const size_t             m = matrices.size();
    const size_t             n = std::min(m, N_SAMPLE_TENSORS);
    std::vector<std::string> names;
    for (size_t q = 0; q < n; ++q) {
        names.push_back(matrices[q * m / n]->info->name);
    }
    return names;
}

bool base_file::samples(const std::vector<std::string> & names, std::vector<float> & out, std::string & err) const {
    out.clear();
    for (const std::string & name : names) {
        const auto it = p->index.find(name);
        if (it == p->index.end()) {
            err = message("%s: has no tensor '%s'", p->path.c_str(), printable(name).c_str());
            return false;
        }
        const int64_t n = n_elements(*it->second.info);
        for (int64_t t = 0; t < (int64_t) N_SAMPLES_PER_TENSOR; ++t) {
            // Computes (2 t + 1) n / 64 without the overflow of the product, as n = 64 a + b.
            const int64_t i = (2 * t + 1) * (n / 64) + (2 * t + 1) * (n % 64) / 64;
            out.push_back(element(it->second, i));
        }
    }
    return true;
}

double sample_correlation(const std::vector<float> & of_delta, const std::vector<float> & of_base) {
    GGML_ASSERT(of_delta.size() == of_base.size());

    std::vector<double> a;
    std::vector<double> b;
    for (size_t begin = 0; begin + N_SAMPLES_PER_TENSOR <= of_delta.size(); begin += N_SAMPLES_PER_TENSOR) {
        double sum_sq = 0.0;
        for (size_t i = begin; i < begin + N_SAMPLES_PER_TENSOR; ++i) {
            sum_sq += (double) of_delta[i] * of_delta[i];
        }
        const double rms = std::sqrt(sum_sq / N_SAMPLES_PER_TENSOR);
        for (size_t i = begin; rms > 0.0 && i < begin + N_SAMPLES_PER_TENSOR; ++i) {
            a.push_back(of_delta[i] / rms);
            b.push_back(of_base[i] / rms);
        }
    }
    double mean_a = 0.0;
    double mean_b = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        mean_a += a[i] / (double) a.size();
        mean_b += b[i] / (double) a.size();
    }
    double ab = 0.0;
    double aa = 0.0;
    double bb = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        ab += (a[i] - mean_a) * (b[i] - mean_b);
        aa += (a[i] - mean_a) * (a[i] - mean_a);
        bb += (b[i] - mean_b) * (b[i] - mean_b);
    }
    // NaN in, for instance from a tensor whose type has no values, fails this comparison too.
    const double norm = std::sqrt(aa * bb);
    return norm > 0.0 ? ab / norm : 0.0;
}

// Says, for example: "math.dq.gguf is a delta of 'A' (llama), base.gguf is 'B' (llama)".
static std::string both_names(const delta_file & delta, const base_file & base) {
    return message("%s is a delta of '%s' (%s), %s is '%s' (%s)", delta.path().c_str(), printable(delta.base_name()).c_str(),
                   printable(delta.architecture()).c_str(), base.path().c_str(), printable(base.name()).c_str(),
                   printable(base.architecture()).c_str());
}

base_comparison compare(const delta_file & delta, const base_file & base) {
    base_comparison out;
    if (delta.base_digest() == base.digest()) {
        out.match       = base_match::same_file;
        out.correlation = 1.0;
        return out;
    }
    std::vector<float> samples;
    std::string        missing;
    if (base.samples(delta.sample_tensors(), samples, missing)) {
        out.correlation = sample_correlation(delta.samples(), samples);
    }
    if (out.correlation >= SAME_MODEL_CORRELATION) {
        out.match  = base_match::same_model;
        out.reason = both_names(delta, base) +
                     message(": the same model in other bytes (correlation %.3f), expected the same file", out.correlation);
    } else {
        out.match  = base_match::other_model;
        out.reason = both_names(delta, base) +
                     message(": another model (correlation %.3f, expected at least %.1f)", out.correlation, SAME_MODEL_CORRELATION);
    }
    return out;
}

bool check_shapes(const delta_file & delta, const base_file & base, std::string & err) {
    if (delta.architecture() != base.architecture()) {
        err = both_names(delta, base) + ": another architecture";
        return false;
    }
    for (const weight_info & weight : delta.weights()) {
        const int64_t * ne = base.shape(weight.name);
        if (ne == nullptr) {
            err = both_names(delta, base) + ": it has no tensor '" + printable(weight.name) + "'";
            return false;
        }
        if (!std::equal(ne, ne + 4, weight.ne)) {
            err = both_names(delta, base) + message(": '%s' is %s there, expected %s", printable(weight.name).c_str(),
                                                    shape_text(ne).c_str(), shape_text(weight.ne).c_str());
            return false;
        }
    }
    return true;
}

bool check_tokens(const delta_file & delta, int64_t n_tokens, std::string & err) {
    const auto check = [&](const char * key, int64_t id) {
        if (id >= n_tokens) {
            err = message("%s: metadata key '%s' has token %" PRId64 ", but the base has %" PRId64
                          " tokens. Is this the base that the delta was made from?",
                          delta.path().c_str(), key, id, n_tokens);
        }
        return id < n_tokens;
    };
    const std::vector<uint32_t> changed = delta.changed_tokens();
    const auto &                eog     = delta.eog_tokens();
    return std::all_of(std::begin(TOKEN_ID_KEYS), std::end(TOKEN_ID_KEYS),
                       [&](const char * key) { return check(key, delta.token_id(key)); }) &&
           (!delta.names_all_eog() || std::all_of(eog.begin(), eog.end(), [&](int32_t id) { return check(KEY_END_TOKENS, id); })) &&
           (changed.empty() || check("dqrelo.token.ids", *std::max_element(changed.begin(), changed.end())));
}

} // namespace dqrelo
