#include "delta-file.h"

#include "delta-layout.h"
#include "gguf-header.h"
#include "hash/hash.h"
#include "mapped-file.h"
#include "message.h"

#include <algorithm>
#include <cinttypes>
#include <unordered_map>

namespace dqrelo {

namespace {

constexpr uint32_t VERSION   = 1;
constexpr uint32_t ALIGNMENT = 64;

// Keys that MAY be there, and then have this type.
struct optional_key {
    const char * key;
    gguf_type    type;
};

const optional_key OPTIONAL_KEYS[] = {
    { "tokenizer.chat_template",         GGUF_TYPE_STRING },
    { "tokenizer.ggml.bos_token_id",     GGUF_TYPE_UINT32 },
    { "tokenizer.ggml.eos_token_id",     GGUF_TYPE_UINT32 },
    { "tokenizer.ggml.eot_token_id",     GGUF_TYPE_UINT32 },
    { "tokenizer.ggml.eom_token_id",     GGUF_TYPE_UINT32 },
    { "tokenizer.ggml.padding_token_id", GGUF_TYPE_UINT32 },
    { "tokenizer.ggml.add_bos_token",    GGUF_TYPE_BOOL   },
    { "tokenizer.ggml.add_eos_token",    GGUF_TYPE_BOOL   },
};

const char * const EOG_KEYS[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id" };

bool require_value(const gguf_header & header, const char * key, const std::string & expected, const char * hint, std::string & err) {
    std::string value;
    if (!header.require(key, "string", value, err)) {
        return false;
    }
    if (value != expected) {
        err = message("key '%s' is '%s', expected '%s'. %s", key, printable(value).c_str(), expected.c_str(), hint);
        return false;
    }
    return true;
}

bool check_kind(const gguf_header & header, std::string & err) {
    if (header.version != 3) {
        err = message("GGUF version is %" PRIu32 ", expected 3", header.version);
        return false;
    }
    if (!require_value(header, "general.type", "adapter", "Is it a model and not a delta?", err) ||
        !require_value(header, "adapter.type", "dqrelo", "Is it a LoRA adapter?", err)) {
        return false;
    }
    uint32_t version = 0;
    if (!header.require("dqrelo.version", "u32", version, err)) {
        return false;
    }
    if (version != VERSION) {
        err = message("delta format version is %" PRIu32 ", expected %" PRIu32 ". %s", version, VERSION,
                      version > VERSION ? "It was made by a newer dqrelo-convert; update this program." : "No such version exists.");
        return false;
    }
    uint32_t alignment = 0;
    if (!header.require("general.alignment", "u32", alignment, err)) {
        return false;
    }
    if (alignment != ALIGNMENT) {
        err = message("key 'general.alignment' is %" PRIu32 ", expected %" PRIu32, alignment, ALIGNMENT);
        return false;
    }
    return true;
}

bool check_optional_keys(const gguf_header & header, std::string & err) {
    for (const optional_key & optional : OPTIONAL_KEYS) {
        const gguf_entry * entry = header.find(optional.key);
        if (entry != nullptr && (entry->is_array || entry->type != optional.type)) {
            err = message("key '%s' has another type, expected type %s", optional.key, gguf_type_name(optional.type));
            return false;
        }
    }
    return true;
}

} // namespace

struct delta_file::impl {
    std::string                             path;
    std::unique_ptr<mapped_file>            file;
    gguf_header                             header;
    delta_layout                            layout;
    std::unordered_map<std::string, size_t> index;  // weight name -> its number

    std::string                name, architecture, content_hash, base_name, base_digest;
    double                     ratio   = 0.0;
    size_t                     n_bytes = 0;
    std::vector<std::string>   sample_tensors;
    std::vector<float>         samples;
    std::optional<std::string> chat_template;
    std::vector<int32_t>       eog_tokens;

    bool read_metadata(std::string & err);
    bool read_base(std::string & err);
    bool read_tokens(std::string & err);
    std::string content_lines() const;
};

bool delta_file::impl::read_metadata(std::string & err) {
    std::string text;  // keys that only have to be there
    if (!header.require("general.architecture", "string", architecture, err) || !header.require("general.name", "string", name, err) ||
        !header.require("dqrelo.method", "string", text, err) || !header.require("dqrelo.converter", "string", text, err) ||
        !header.require("dqrelo.options", "string", text, err) || !header.require("dqrelo.reference", "string", text, err) ||
        !header.require("dqrelo.ratio", "f64", ratio, err) || !header.require("dqrelo.content_hash", "string", content_hash, err)) {
        return false;
    }
    if (!is_sha256_text(content_hash)) {
        err = message("key 'dqrelo.content_hash' is '%s', expected 64 lower-case hex digits", printable(content_hash).c_str());
        return false;
    }
    return read_base(err) && check_optional_keys(header, err) && read_tokens(err);
}

bool delta_file::impl::read_base(std::string & err) {
    if (!header.require("dqrelo.base.name", "string", base_name, err) || !header.require("dqrelo.base.digest", "string", base_digest, err) ||
        !header.require("dqrelo.base.sample_tensors", "[string]", sample_tensors, err) ||
        !header.require("dqrelo.base.samples", "[f32]", samples, err)) {
        return false;
    }
    if (!is_sha256_text(base_digest)) {
        err = message("key 'dqrelo.base.digest' is '%s', expected 64 lower-case hex digits", printable(base_digest).c_str());
        return false;
    }
    constexpr size_t n_samples = 32;  // of each tensor
    if (samples.size() != n_samples * sample_tensors.size()) {
        err = message("key 'dqrelo.base.samples': has %zu entries, expected %zu", samples.size(), n_samples * sample_tensors.size());
        return false;
    }
    return true;
}

bool delta_file::impl::read_tokens(std::string & err) {
    std::string text;
    if (header.get("tokenizer.chat_template", text)) {
        chat_template = text;
    }
    for (const char * key : EOG_KEYS) {
        uint32_t id = 0;
        if (!header.get(key, id)) {
            continue;
        }
        if (id > INT32_MAX) {
            err = message("key '%s' is %" PRIu32 ", expected a token id under 2^31", key, id);
            return false;
        }
        if (std::find(eog_tokens.begin(), eog_tokens.end(), (int32_t) id) == eog_tokens.end()) {
            eog_tokens.push_back((int32_t) id);
        }
    }
    return true;
}

// The text whose SHA-256 is the content hash: docs/format.md, section 5.
std::string delta_file::impl::content_lines() const {
    std::string text;
    for (size_t i = 0; i < header.tensors.size(); ++i) {
        const gguf_tensor_entry & tensor = header.tensors[i];
        const declared_tensor &   facts  = layout.tensors[i];
        text += tensor.name + " " + facts.type + " " + storage_name(tensor.type) + " " + full_shape_text(facts.ne) + " " + facts.sha256 + "\n";
    }
    return text;
}

std::unique_ptr<delta_file> delta_file::open(const std::string & path, std::string & err) {
    std::unique_ptr<impl> p(new impl());
    p->path = path;
    std::string reason;
    p->file = mapped_file::open(path, reason);

    const bool good = p->file && parse_gguf_header(p->file->data(), p->file->n_bytes(), p->header, reason) && check_kind(p->header, reason) &&
                      p->read_metadata(reason) && read_delta_layout(p->header, p->file->data(), p->layout, reason);
    if (!good) {
        err = path + ": " + reason;
        return nullptr;
    }
    for (size_t i = 0; i < p->layout.weights.size(); ++i) {
        p->index.emplace(p->layout.weights[i].name, i);
    }
    for (const gguf_tensor_entry & tensor : p->header.tensors) {
        p->n_bytes += tensor.n_bytes;
    }
    return std::unique_ptr<delta_file>(new delta_file(std::move(p)));
}

delta_file::delta_file(std::unique_ptr<impl> p) : p(std::move(p)) {}

delta_file::~delta_file() = default;

const std::vector<weight_info> & delta_file::weights() const { return p->layout.weights; }

int64_t delta_file::find(const std::string & name) const {
    const auto it = p->index.find(name);
    return it == p->index.end() ? -1 : (int64_t) it->second;
}

const uint8_t * delta_file::data(size_t i) const { return p->file->data() + p->layout.weights[i].offset_bytes; }

dqrelo_entry delta_file::entry(size_t i, int64_t e) const { return entry_at(i, e, data(i)); }

dqrelo_entry delta_file::entry_at(size_t i, int64_t e, const void * pack) const {
    const weight_info & weight = p->layout.weights[i];
    const pack_layout & layout = p->layout.packs[i];
    GGML_ASSERT(e >= 0 && e < weight.ne[2] * weight.ne[3]);

    // Integer arithmetic: `pack` may be an address of another device.
    const auto at = [&](const part_layout & part) -> const void * {
        return part.present ? (const void *) ((uintptr_t) pack + part.offset_bytes + (size_t) e * part.n_bytes_a_matrix) : nullptr;
    };
    dqrelo_entry entry = {};
    for (int32_t k = 0; k < weight.n_planes; ++k) {
        entry.sign[k]  = (const uint8_t *) at(layout.sign[k]);
        entry.scale[k] = (const float *) at(layout.scale[k]);
    }
    entry.cscale        = (const float *) at(layout.cscale);
    entry.u             = at(layout.u);
    entry.v             = at(layout.v);
    entry.dense         = at(layout.dense);
    entry.n_in          = weight.ne[0];
    entry.n_out         = weight.ne[1];
    entry.n_planes      = weight.n_planes;
    entry.rank          = weight.rank;
    entry.type_u        = layout.u.type;
    entry.type_v        = layout.v.type;
    entry.type_dense    = layout.dense.type;
    entry.scale_per_row = layout.scale_per_row;
    return entry;
}

const std::string & delta_file::path() const { return p->path; }
const std::string & delta_file::name() const { return p->name; }
const std::string & delta_file::architecture() const { return p->architecture; }
const std::string & delta_file::content_hash() const { return p->content_hash; }
double              delta_file::ratio() const { return p->ratio; }
size_t              delta_file::n_bytes() const { return p->n_bytes; }

const std::string &              delta_file::base_name() const { return p->base_name; }
const std::string &              delta_file::base_digest() const { return p->base_digest; }
const std::vector<std::string> & delta_file::sample_tensors() const { return p->sample_tensors; }
const std::vector<float> &       delta_file::samples() const { return p->samples; }

const std::optional<std::string> & delta_file::chat_template() const { return p->chat_template; }
const std::vector<int32_t> &       delta_file::eog_tokens() const { return p->eog_tokens; }

std::optional<std::string> delta_file::meta_str(const std::string & key) const {
    const gguf_entry * entry = p->header.find(key);
    if (entry == nullptr || entry->is_array) {
        return std::nullopt;
    }
    return scalar_text(*entry);
}

std::vector<std::string> delta_file::meta_keys() const {
    std::vector<std::string> keys;
    for (const gguf_entry & entry : p->header.entries) {
        if (!entry.is_array) {
            keys.push_back(entry.key);
        }
    }
    return keys;
}

bool delta_file::verify(std::string & err) const {
    for (size_t i = 0; i < p->header.tensors.size(); ++i) {
        const gguf_tensor_entry & tensor = p->header.tensors[i];
        const uint8_t *           bytes  = p->file->data() + p->header.data_offset_bytes + tensor.offset_bytes;
        const std::string         found  = hash_sha256_hex(bytes, tensor.n_bytes);
        if (found != p->layout.tensors[i].sha256) {
            err = message("%s: tensor '%s': sha256 is %s, expected %s. The file is damaged: copy or download it again.", p->path.c_str(),
                          printable(tensor.name).c_str(), found.c_str(), p->layout.tensors[i].sha256.c_str());
            return false;
        }
    }
    const std::string lines = p->content_lines();
    const std::string found = hash_sha256_hex(lines.data(), lines.size());
    if (found != p->content_hash) {
        err = message("%s: content hash is %s, expected %s. The file is damaged: copy or download it again.", p->path.c_str(), found.c_str(),
                      p->content_hash.c_str());
        return false;
    }
    return true;
}

void delta_file::prefault() const { p->file->prefault(0, p->file->n_bytes()); }

} // namespace dqrelo
