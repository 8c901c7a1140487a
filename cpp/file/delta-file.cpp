#include "file/delta-file.h"

#include "cpu/transposed-signs.h"
#include "file/arrange.h"
#include "file/delta-keys.h"
#include "file/delta-layout.h"
#include "file/entries.h"
#include "file/finite.h"
#include "file/gguf-header.h"
#include "hash/hash.h"
#include "file/mapped-file.h"
#include "file/message.h"
#include "file/sha256.h"
#include "file/verified.h"

#include <algorithm>
#include <cinttypes>
#include <numeric>
#include <unordered_map>

namespace dqrelo {

namespace {

const char * const EOG_KEYS[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id" };

// Returns the value of a key that check_delta_keys found to be there.
template <typename T>
T value_of(const gguf_header & header, const char * key) {
    T value{};
    header.get(key, value);
    return value;
}

bool check_digest(const char * key, const std::string & digest, std::string & err) {
    if (!is_sha256_text(digest)) {
        err = message("%s is '%s', expected 64 lower-case hex digits", key, printable(digest).c_str());
        return false;
    }
    return true;
}

} // namespace

struct delta_file::impl {
    std::string                             path;
    std::unique_ptr<mapped_file>            file;
    gguf_header                             header;
    delta_layout                            layout;
    std::vector<bool>                       transposed; // by weight, whether its signs in `file` are
    std::unordered_map<std::string, size_t> index;      // Maps a weight's name to its number.

    std::string                name, architecture, content_hash, base_name, base_digest;
    double                     ratio   = 0.0;
    size_t                     n_bytes = 0;
    std::vector<std::string>   sample_tensors;
    std::vector<float>         samples;
    std::optional<std::string> chat_template;
    std::vector<int32_t>       eog_tokens;
    bool                       names_all_eog = false;

    dqrelo_entry plain_entry(size_t i) const;
    void         arrange(const std::vector<size_t> & weights, const is_decoding_fn & is_decoding);
    is_hashed_fn arrange_beside(const std::vector<sha256_input> & inputs) const;
    bool         read_header(const is_aborted_fn & is_aborted, std::string & err);
    bool         read_metadata(std::string & err);
    void         read_tokens();
    bool         read_data(const options & options, std::string & err);
    bool         check_floats(size_t n_bytes, size_t & i, std::string & err) const;
    bool         check_padding(std::string & err) const;
    bool         check_entries(std::string & err) const;
    bool         check_digests(const std::vector<std::string> & found, std::string & err) const;
    std::string  content_lines() const;
};

bool delta_file::impl::read_metadata(std::string & err) {
    architecture   = value_of<std::string>(header, "general.architecture");
    name           = value_of<std::string>(header, "general.name");
    ratio          = value_of<double>(header, "dqrelo.ratio");
    content_hash   = value_of<std::string>(header, "dqrelo.content_hash");
    base_name      = value_of<std::string>(header, "dqrelo.base.name");
    base_digest    = value_of<std::string>(header, "dqrelo.base.digest");
    sample_tensors = value_of<std::vector<std::string>>(header, "dqrelo.base.sample_tensors");
    samples        = value_of<std::vector<float>>(header, "dqrelo.base.samples");

    constexpr size_t n_samples     = 32; // samples of each tensor
    constexpr size_t n_tensors_max = 16;
    if (sample_tensors.size() > n_tensors_max) {
        err =
            message("metadata key 'dqrelo.base.sample_tensors' has %zu items, expected at most %zu", sample_tensors.size(), n_tensors_max);
        return false;
    }
    if (samples.size() != n_samples * sample_tensors.size()) {
        err = message("metadata key 'dqrelo.base.samples' has %zu items, expected %zu", samples.size(), n_samples * sample_tensors.size());
        return false;
    }
    read_tokens();
    return check_digest("dqrelo.content_hash", content_hash, err) && check_digest("dqrelo.base.digest", base_digest, err);
}

void delta_file::impl::read_tokens() {
    std::string text;
    // A model whose only template is the one for tools uses it for everything, as llama.cpp does.
    if (header.get("tokenizer.chat_template", text) || header.get("tokenizer.chat_template.tool_use", text)) {
        chat_template = text;
    }
    std::vector<uint32_t> all;
    names_all_eog = header.get(KEY_END_TOKENS, all);
    if (names_all_eog) {
        eog_tokens.assign(all.begin(), all.end());
        return;
    }
    for (const char * key : EOG_KEYS) {
        uint32_t id = 0;
        if (header.get(key, id) && std::find(eog_tokens.begin(), eog_tokens.end(), (int32_t) id) == eog_tokens.end()) {
            eog_tokens.push_back((int32_t) id);
        }
    }
}

// Looks for NaN and infinity in the tensors from number i on that end in the first n_bytes of the file, and sets i to the first other one.
bool delta_file::impl::check_floats(size_t n_bytes, size_t & i, std::string & err) const {
    for (; i < header.tensors.size(); ++i) {
        const gguf_tensor_entry & tensor = header.tensors[i];
        const size_t              at     = header.data_offset_bytes + (size_t) tensor.offset_bytes;
        if (at + tensor.n_bytes > n_bytes) {
            return true;
        }
        const uint8_t * bytes = file->data() + at;
        const bool      is_f8 = tensor.type == GGML_TYPE_I8 && layout.tensors[i].type == "DQ_ENTRY";
        const size_t    n_bad = is_f8 ? count_not_finite_f8(bytes, tensor.n_bytes) : count_not_finite(tensor.type, bytes, tensor.n_bytes);
        if (n_bad > 0) {
            err = not_finite_text(tensor.name, n_bad);
            return false;
        }
    }
    return true;
}

// Between the header and the data, and behind every tensor, are zeros only.
bool delta_file::impl::check_padding(std::string & err) const {
    const uint8_t * bytes   = file->data();
    size_t          begin   = header.end_bytes;
    std::string     what    = "the header";
    const auto      is_zero = [&](size_t end) {
        const bool good = std::all_of(bytes + begin, bytes + end, [](uint8_t byte) { return byte == 0; });
        if (!good) {
            err = "the padding behind " + what + " has bytes that are not 0";
        }
        return good;
    };
    for (const gguf_tensor_entry & tensor : header.tensors) {
        const size_t at = header.data_offset_bytes + (size_t) tensor.offset_bytes;
        if (!is_zero(at)) {
            return false;
        }
        begin = at + tensor.n_bytes;
        what  = "tensor '" + printable(tensor.name) + "'";
    }
    return is_zero(file->n_bytes());
}

// The places of every sparse weight's entries agree with each other: after this the operator may read what they say.
bool delta_file::impl::check_entries(std::string & err) const {
    for (size_t i = 0; i < layout.weights.size(); ++i) {
        const weight_info & weight = layout.weights[i];
        if (weight.n_entries == 0) {
            continue;
        }
        const dqrelo_entry entry   = entry_of(weight, layout.packs[i], file->data() + weight.offset_bytes);
        const std::string  problem = entries_problem(entry, (int64_t) weight.n_entries);
        if (!problem.empty()) {
            err = "tensor '" + printable(weight.name) + problem;
            return false;
        }
    }
    return true;
}

// Returns the text whose SHA-256 is the content hash: docs/format.md, section 5.
std::string delta_file::impl::content_lines() const {
    std::string text;
    for (size_t i = 0; i < header.tensors.size(); ++i) {
        const gguf_tensor_entry & tensor = header.tensors[i];
        const declared_tensor &   facts  = layout.tensors[i];
        text += tensor.name + " " + facts.type + " " + storage_name(tensor.type) + " " + dims_text(facts.ne, 4) + " " + facts.sha256 + "\n";
    }
    return text;
}

// Compares the SHA-256 of every tensor with the declared one, and that of them all with the content hash. `err` names up to three tensors.
bool delta_file::impl::check_digests(const std::vector<std::string> & found, std::string & err) const {
    std::string damaged;
    size_t      n_damaged = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        if (found[i] == layout.tensors[i].sha256) {
            continue;
        }
        if (n_damaged < 3) {
            damaged += (n_damaged > 0 ? ", '" : "'") + printable(header.tensors[i].name) + "'";
        }
        ++n_damaged;
    }
    if (n_damaged > 0) {
        const std::string more = n_damaged > 3 ? message(" and %zu more", n_damaged - 3) : "";
        err = message("damaged: the data of %s%s does not have its declared SHA-256. Download it again", damaged.c_str(), more.c_str());
        return false;
    }
    const std::string lines = content_lines();
    const std::string hash  = hash_sha256_hex(lines.data(), lines.size());
    if (hash != content_hash) {
        err = message("damaged: dqrelo.content_hash is %s, its tensors have %s", content_hash.c_str(), hash.c_str());
        return false;
    }
    return true;
}

// Returns the entry of weight i as the file has it.
dqrelo_entry delta_file::impl::plain_entry(size_t i) const {
    return entry_of(layout.weights[i], layout.packs[i], file->data() + layout.weights[i].offset_bytes);
}

// Arranges the signs of weights that are not, where this CPU wants that, and the file is no map.
void delta_file::impl::arrange(const std::vector<size_t> & weights, const is_decoding_fn & is_decoding) {
    std::vector<dqrelo_entry> entries;
    std::vector<size_t>       found;
    for (size_t i : weights) {
        const dqrelo_entry entry = plain_entry(i);
        if (!transposed[i] && dqrelo_can_transpose(&entry)) {
            entries.push_back(entry);
            found.push_back(i);
        }
    }
    if (entries.empty() || !dqrelo_transposes_signs() || !file->begin_changes()) {
        return;
    }
    dqrelo::arrange_signs(entries, is_decoding);
    file->end_changes();
    for (size_t i : found) {
        transposed[i] = true;
    }
}

// Returns what arranges signs when they are hashed. The inputs are all tensors.
is_hashed_fn delta_file::impl::arrange_beside(const std::vector<sha256_input> & inputs) const {
    std::vector<dqrelo_entry> entries;
    for (size_t i = 0; i < layout.weights.size(); ++i) {
        const dqrelo_entry entry = plain_entry(i);
        if (dqrelo_can_transpose(&entry)) {
            entries.push_back(entry);
        }
    }
    std::vector<const void *> tensors;
    for (const sha256_input & input : inputs) {
        tensors.push_back(input.data);
    }
    const auto arranging = std::make_shared<sign_arranging>(entries, tensors);
    return [arranging](size_t tensor, const void * end) { arranging->may_change(tensor, end); };
}

// Reads what is behind the header, and checks it. Digests are computed on threads of their own as the bytes come.
bool delta_file::impl::read_data(const options & options, std::string & err) {
    std::unique_ptr<sha256_hashing> hashing;
    bool                            is_arranged_beside = false;
    const auto                      begin_hashing      = [&] {
        std::vector<sha256_input> inputs;
        for (const gguf_tensor_entry & tensor : header.tensors) {
            inputs.push_back({ file->data() + header.data_offset_bytes + tensor.offset_bytes, tensor.n_bytes });
        }
        is_arranged_beside = options.on_cpu && dqrelo_transposes_signs() && file->begin_changes();
        hashing = std::make_unique<sha256_hashing>(inputs, sha256_kernels().front(), sha256_n_threads(inputs), options.is_decoding,
                                                   is_arranged_beside ? arrange_beside(inputs) : nullptr);
    };
    if (options.digests == digest_check::always || (options.digests == digest_check::once && !was_verified(file->identity()))) {
        begin_hashing();
    }
    file->expect_whole(options.is_decoding, hashing != nullptr);
    // From the first byte to the last: a disk serves that far better than the floats, which lie all over the file.
    constexpr size_t step     = (size_t) 1 << 20;
    size_t           n_floats = 0;
    pacer            pace(options.is_decoding);
    for (size_t n = 0; n < file->n_bytes();) {
        n = std::min(n + step, file->n_bytes());
        if (!file->is_past_page_cache()) { // Else this thread waits nearly all the time.
            pace.rest();
        }
        if (!file->fetch(n, options.is_aborted, err)) {
            return false;
        }
        if (hashing) {
            hashing->arrived(file->data() + n);
        }
        if (!check_floats(n, n_floats, err)) {
            return false;
        }
    }
    if (!check_padding(err) || !check_entries(err)) {
        return false;
    }
    if (!hashing && options.digests == digest_check::once && file->identity().empty()) { // It changed while it was read.
        begin_hashing();
    }
    if (!hashing) {
        return true;
    }
    std::vector<std::string> found;
    if (!hashing->finish(options.is_aborted, found)) {
        err = "was not checked to its end: nobody waits for it any more";
        return false;
    }
    if (!check_digests(found, err)) {
        return false;
    }
    if (is_arranged_beside) {
        file->end_changes();
        for (size_t i = 0; i < transposed.size(); ++i) {
            const dqrelo_entry entry = plain_entry(i);
            transposed[i]            = dqrelo_can_transpose(&entry);
        }
    }
    remember_verified(file->identity());
    return true;
}

// Reads what the header takes, and parses it. Most headers lie in the first bytes, and none behind the second number; what was not read
// is zeros, which may parse as well as not.
bool delta_file::impl::read_header(const is_aborted_fn & is_aborted, std::string & err) {
    for (const size_t n_bytes : { (size_t) 1 << 20, (size_t) 64 << 20 }) {
        if (!file->fetch(n_bytes, is_aborted, err)) {
            return false;
        }
        header               = {};
        const bool is_parsed = parse_gguf_header(file->data(), file->n_bytes(), header, err);
        if (is_parsed && (header.data_offset_bytes <= n_bytes || file->n_bytes() <= n_bytes)) {
            const bool good =
                check_delta_keys(header, err) && read_metadata(err) && read_delta_layout(header, file->n_bytes(), layout, err);
            transposed.assign(layout.weights.size(), false);
            return good;
        }
        if (is_parsed) {
            err = message("has a header of %zu bytes, expected at most %zu", header.data_offset_bytes, n_bytes);
        }
    }
    return false;
}

std::unique_ptr<delta_file> delta_file::open(const std::string & path, const options & options, std::string & err) {
    std::unique_ptr<impl> p(new impl());
    p->path = path;
    std::string reason;
    p->file = mapped_file::open(path, options.use_mmap ? mapped_file::mode::map : mapped_file::mode::copy, reason);

    const bool good = p->file && p->read_header(options.is_aborted, reason) && (options.header_only || p->read_data(options, reason));
    if (!good) {
        err = path + ": " + reason;
        return nullptr;
    }
    if (options.on_cpu && !options.header_only) {
        std::vector<size_t> all(p->layout.weights.size());
        std::iota(all.begin(), all.end(), (size_t) 0);
        p->arrange(all, options.is_decoding); // those that were not arranged beside the reading
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

const std::vector<weight_info> & delta_file::weights() const {
    return p->layout.weights;
}

int64_t delta_file::find(const std::string & name) const {
    const auto it = p->index.find(name);
    return it == p->index.end() ? -1 : (int64_t) it->second;
}

const uint8_t * delta_file::data(size_t i) const {
    return p->file->data() + p->layout.weights[i].offset_bytes;
}

void delta_file::discard(size_t i) const {
    p->file->discard(p->layout.weights[i].offset_bytes, p->layout.weights[i].n_bytes);
}

dqrelo_entry delta_file::entry(size_t i) const {
    dqrelo_entry entry = entry_at(i, data(i));
    entry.transposed   = p->transposed[i];
    return entry;
}

void delta_file::arrange_signs(const std::vector<size_t> & weights, const is_decoding_fn & is_decoding) {
    p->arrange(weights, is_decoding);
}

bool delta_file::is_arranged(size_t i) const {
    return p->transposed[i];
}

dqrelo_entry delta_file::entry_at(size_t i, const void * pack) const {
    return entry_of(p->layout.weights[i], p->layout.packs[i], pack);
}

const std::string & delta_file::path() const {
    return p->path;
}
const std::string & delta_file::name() const {
    return p->name;
}
const std::string & delta_file::architecture() const {
    return p->architecture;
}
const std::string & delta_file::content_hash() const {
    return p->content_hash;
}
double delta_file::ratio() const {
    return p->ratio;
}
size_t delta_file::n_bytes() const {
    return p->n_bytes;
}
size_t delta_file::n_bytes_mapped() const {
    return p->file->n_bytes();
}

const std::string & delta_file::base_name() const {
    return p->base_name;
}
const std::string & delta_file::base_digest() const {
    return p->base_digest;
}
const std::vector<std::string> & delta_file::sample_tensors() const {
    return p->sample_tensors;
}
const std::vector<float> & delta_file::samples() const {
    return p->samples;
}

const std::optional<std::string> & delta_file::chat_template() const {
    return p->chat_template;
}
const std::vector<int32_t> & delta_file::eog_tokens() const {
    return p->eog_tokens;
}
bool delta_file::names_all_eog() const {
    return p->names_all_eog;
}

std::vector<uint32_t> delta_file::changed_tokens() const {
    std::vector<uint32_t> ids;
    p->header.get("dqrelo.token.ids", ids);
    return ids;
}

int64_t delta_file::token_id(const char * key) const {
    uint32_t id = 0;
    return p->header.get(key, id) ? (int64_t) id : -1;
}

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

} // namespace dqrelo
