#include "gguf-header.h"

#include "message.h"

#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

namespace dqrelo {

namespace {

// Smallest possible sizes of an entry and a tensor, in bytes: they bound the header's counts before anything is allocated.
constexpr uint64_t MIN_ENTRY_BYTES  = 8 + 4 + 1;           // key length, type, a value of one byte
constexpr uint64_t MIN_TENSOR_BYTES = 8 + 4 + 4 + 8;       // name length, n_dims, type, offset

template <typename T> T load(const uint8_t * data) {
    T value;
    memcpy(&value, data, sizeof(T));
    return value;
}

// Reads forward through the header; the first failure sticks.
struct cursor {
    const uint8_t * data;
    size_t          n_bytes;
    size_t          at = 0;
    std::string     err;

    // Pointer to the next n bytes, or nullptr.
    const uint8_t * take(uint64_t n, const std::string & what) {
        if (!err.empty()) {
            return nullptr;
        }
        if (n > n_bytes - at) {
            err = message("header: %s needs %" PRIu64 " bytes at byte %zu, file has %zu bytes. Truncated download?",
                          what.c_str(), n, at, n_bytes);
            return nullptr;
        }
        const uint8_t * p = data + at;
        at += (size_t) n;
        return p;
    }

    template <typename T> T number(const std::string & what) {
        const uint8_t * p = take(sizeof(T), what);
        return p ? load<T>(p) : T(0);
    }

    std::string text(const std::string & what) {
        const uint64_t  n = number<uint64_t>(what);
        const uint8_t * p = take(n, what);
        if (p && !is_utf8((const char *) p, (size_t) n)) {
            err = message("header: %s is not UTF-8", what.c_str());
            return "";
        }
        return p ? std::string((const char *) p, (size_t) n) : "";
    }
};

size_t element_bytes(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:   return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64: return 8;
        default:                return 0;  // strings, arrays, unknown
    }
}

bool read_value(cursor & in, gguf_entry & entry) {
    const std::string what = "key '" + printable(entry.key) + "'";
    const size_t      size = element_bytes(entry.type);
    if (size == 0 && entry.type != GGUF_TYPE_STRING) {
        in.err = message("header: %s has type %d, expected a GGUF scalar, a string or an array of those", what.c_str(), (int) entry.type);
        return false;
    }
    const uint64_t least_bytes = size ? size : sizeof(uint64_t);  // of an element
    if (entry.n > (in.n_bytes - in.at) / least_bytes) {
        in.err = message("header: %s has %" PRIu64 " elements at byte %zu, file has %zu bytes. Truncated download?",
                         what.c_str(), entry.n, in.at, in.n_bytes);
        return false;
    }
    entry.data = in.data + in.at;
    if (size) {
        in.take(entry.n * size, what);
    } else {
        for (uint64_t i = 0; i < entry.n && in.err.empty(); ++i) {
            const uint64_t  n = in.number<uint64_t>(what);
            const uint8_t * p = in.take(n, what);
            // Vocabularies may hold byte pieces, so only single strings, and the names that deltas list, have to be text.
            if (p && !entry.is_array && !is_utf8((const char *) p, (size_t) n)) {
                in.err = message("header: %s is not UTF-8", what.c_str());
            }
        }
    }
    entry.n_bytes = (size_t) (in.data + in.at - entry.data);
    return in.err.empty();
}

bool read_entry(cursor & in, uint64_t i, gguf_entry & entry) {
    entry.key       = in.text(message("key %" PRIu64, i));
    const auto type = in.number<uint32_t>("type of key '" + printable(entry.key) + "'");
    entry.is_array  = type == GGUF_TYPE_ARRAY;
    uint32_t element = type;
    if (entry.is_array) {
        element = in.number<uint32_t>("element type of key '" + printable(entry.key) + "'");
        entry.n = in.number<uint64_t>("length of key '" + printable(entry.key) + "'");
    }
    // GGUF_TYPE_COUNT stands for every id that is unknown: an enum may not hold them all.
    entry.type = element < GGUF_TYPE_COUNT ? (gguf_type) element : GGUF_TYPE_COUNT;
    return in.err.empty() && read_value(in, entry);
}

bool read_shape(cursor & in, gguf_tensor_entry & tensor, const std::string & what) {
    const uint32_t n_dims = in.number<uint32_t>(what);
    if (in.err.empty() && n_dims > GGML_MAX_DIMS) {
        in.err = message("%s: has %" PRIu32 " dimensions, expected at most %d", what.c_str(), n_dims, GGML_MAX_DIMS);
    }
    int64_t n_elements = 1;
    for (uint32_t j = 0; j < n_dims && in.err.empty(); ++j) {
        const uint64_t n = in.number<uint64_t>(what);
        if (in.err.empty() && (n < 1 || n > (uint64_t) (INT64_MAX / n_elements))) {
            in.err = message("%s: dimension %" PRIu32 " is %" PRIu64 ", expected at least 1 and fewer than 2^63 elements in all",
                             what.c_str(), j, n);
            break;
        }
        if (in.err.empty()) {
            tensor.ne[j] = (int64_t) n;
            n_elements *= (int64_t) n;
        }
    }
    return in.err.empty();
}

bool read_tensor(cursor & in, uint64_t i, gguf_tensor_entry & tensor) {
    tensor.name            = in.text(message("name of tensor %" PRIu64, i));
    const std::string what = "tensor '" + printable(tensor.name) + "'";
    if (!read_shape(in, tensor, what)) {
        return false;
    }
    const uint32_t type = in.number<uint32_t>(what);
    tensor.offset_bytes = in.number<uint64_t>(what);
    if (!in.err.empty()) {
        return false;
    }
    // ids of removed types have no block size
    const int64_t n_block = type < GGML_TYPE_COUNT ? ggml_blck_size((ggml_type) type) : 0;
    if (n_block <= 0) {
        in.err = message("%s: storage type %" PRIu32 " is not known. Made by a newer version?", what.c_str(), type);
        return false;
    }
    tensor.type = (ggml_type) type;
    if (tensor.ne[0] % n_block != 0) {
        in.err = message("%s: a row has %" PRId64 " elements, expected a multiple of %" PRId64 " for type %s", what.c_str(),
                         tensor.ne[0], n_block, ggml_type_name(tensor.type));
        return false;
    }
    const uint64_t n_blocks = (uint64_t) tensor.ne[0] / (uint64_t) n_block * (uint64_t) tensor.ne[1] * (uint64_t) tensor.ne[2] * (uint64_t) tensor.ne[3];
    if (n_blocks > SIZE_MAX / ggml_type_size(tensor.type)) {
        in.err = message("%s: shape %s is too large", what.c_str(), shape_text(tensor.ne).c_str());
        return false;
    }
    tensor.n_bytes = (size_t) n_blocks * ggml_type_size(tensor.type);
    return true;
}

bool read_counts(cursor & in, gguf_header & out, uint64_t & n_tensors, uint64_t & n_entries) {
    const uint8_t * magic = in.take(4, "magic");
    if (magic == nullptr || memcmp(magic, GGUF_MAGIC, 4) != 0) {
        in.err = "is not a GGUF file: it does not begin with 'GGUF'";
        return false;
    }
    out.version = in.number<uint32_t>("version");
    if (in.err.empty() && out.version != 2 && out.version != 3) {
        in.err = message("GGUF version is %" PRIu32 ", expected 3", out.version);
        return false;
    }
    n_tensors = in.number<uint64_t>("tensor count");
    n_entries = in.number<uint64_t>("key count");
    if (in.err.empty() && n_entries > (in.n_bytes - in.at) / MIN_ENTRY_BYTES) {
        in.err = message("header: %" PRIu64 " keys cannot fit, file has %zu bytes", n_entries, in.n_bytes);
    }
    if (in.err.empty() && n_tensors > (in.n_bytes - in.at) / MIN_TENSOR_BYTES) {
        in.err = message("header: %" PRIu64 " tensors cannot fit, file has %zu bytes", n_tensors, in.n_bytes);
    }
    return in.err.empty();
}

bool read_alignment(const gguf_header & header, uint32_t & alignment, std::string & err) {
    if (header.find(GGUF_KEY_GENERAL_ALIGNMENT) == nullptr) {
        return true;
    }
    if (!header.get(GGUF_KEY_GENERAL_ALIGNMENT, alignment)) {
        err = message("key '%s': expected type u32", GGUF_KEY_GENERAL_ALIGNMENT);
        return false;
    }
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        err = message("key '%s': is %" PRIu32 ", expected a power of 2", GGUF_KEY_GENERAL_ALIGNMENT, alignment);
        return false;
    }
    return true;
}

template <typename T> bool get_scalar(const gguf_header & header, const std::string & key, gguf_type type, T & out) {
    const gguf_entry * entry = header.find(key);
    if (entry == nullptr || entry->is_array || entry->type != type) {
        return false;
    }
    out = load<T>(entry->data);
    return true;
}

template <typename T> bool get_array(const gguf_header & header, const std::string & key, gguf_type type, std::vector<T> & out) {
    const gguf_entry * entry = header.find(key);
    if (entry == nullptr || !entry->is_array || entry->type != type) {
        return false;
    }
    out.resize((size_t) entry->n);
    if (entry->n > 0) {
        memcpy(out.data(), entry->data, entry->n_bytes);
    }
    return true;
}

} // namespace

bool parse_gguf_header(const uint8_t * data, size_t n_bytes, gguf_header & out, std::string & err) {
    cursor   in{ data, n_bytes, 0, "" };
    uint64_t n_tensors = 0;
    uint64_t n_entries = 0;
    if (!read_counts(in, out, n_tensors, n_entries)) {
        err = in.err;
        return false;
    }
    for (uint64_t i = 0; i < n_entries; ++i) {
        gguf_entry entry;
        if (!read_entry(in, i, entry)) {
            err = in.err;
            return false;
        }
        if (!out.index.emplace(entry.key, out.entries.size()).second) {
            err = message("header: key '%s' is there twice", printable(entry.key).c_str());
            return false;
        }
        out.entries.push_back(std::move(entry));
    }
    if (!read_alignment(out, out.alignment, err)) {
        return false;
    }
    std::unordered_set<std::string> names;
    for (uint64_t i = 0; i < n_tensors; ++i) {
        gguf_tensor_entry tensor;
        if (!read_tensor(in, i, tensor)) {
            err = in.err;
            return false;
        }
        if (!names.insert(tensor.name).second) {
            err = message("tensor '%s': is there twice", printable(tensor.name).c_str());
            return false;
        }
        out.tensors.push_back(std::move(tensor));
    }
    const size_t over     = in.at % out.alignment;
    out.data_offset_bytes = over ? in.at + (out.alignment - over) : in.at;
    return true;
}

const gguf_entry * gguf_header::find(const std::string & key) const {
    const auto it = index.find(key);
    return it == index.end() ? nullptr : &entries[it->second];
}

bool gguf_header::get(const std::string & key, std::string & out) const {
    const gguf_entry * entry = find(key);
    if (entry == nullptr || entry->is_array || entry->type != GGUF_TYPE_STRING) {
        return false;
    }
    out.assign((const char *) entry->data + sizeof(uint64_t), entry->n_bytes - sizeof(uint64_t));
    return true;
}

bool gguf_header::get(const std::string & key, std::vector<std::string> & out) const {
    const gguf_entry * entry = find(key);
    if (entry == nullptr || !entry->is_array || entry->type != GGUF_TYPE_STRING) {
        return false;
    }
    out.clear();
    out.reserve((size_t) entry->n);
    const uint8_t * p = entry->data;
    for (uint64_t i = 0; i < entry->n; ++i) {
        const size_t n = (size_t) load<uint64_t>(p);
        out.emplace_back((const char *) p + sizeof(uint64_t), n);
        p += sizeof(uint64_t) + n;
    }
    return true;
}

bool gguf_header::get(const std::string & key, uint32_t & out) const { return get_scalar(*this, key, GGUF_TYPE_UINT32, out); }
bool gguf_header::get(const std::string & key, uint16_t & out) const { return get_scalar(*this, key, GGUF_TYPE_UINT16, out); }
bool gguf_header::get(const std::string & key, double & out) const { return get_scalar(*this, key, GGUF_TYPE_FLOAT64, out); }

bool gguf_header::get(const std::string & key, std::vector<uint32_t> & out) const { return get_array(*this, key, GGUF_TYPE_UINT32, out); }
bool gguf_header::get(const std::string & key, std::vector<uint64_t> & out) const { return get_array(*this, key, GGUF_TYPE_UINT64, out); }
bool gguf_header::get(const std::string & key, std::vector<float> & out) const { return get_array(*this, key, GGUF_TYPE_FLOAT32, out); }

// Shortest decimal that reads back as the same value.
template <typename T> static std::string float_text(T value, int n_digits_max) {
    std::string text;
    for (int n_digits = 1; n_digits <= n_digits_max; ++n_digits) {
        text = message("%.*g", n_digits, (double) value);
        if ((T) strtod(text.c_str(), nullptr) == value) {
            break;
        }
    }
    return text;
}

std::string storage_name(ggml_type type) {
    std::string name = ggml_type_name(type);
    for (char & c : name) {
        c = c >= 'A' && c <= 'Z' ? (char) (c - 'A' + 'a') : c;
    }
    return name;
}

std::string scalar_text(const gguf_entry & entry) {
    if (entry.is_array) {
        return "";
    }
    switch (entry.type) {
        case GGUF_TYPE_UINT8:   return message("%" PRIu8, load<uint8_t>(entry.data));
        case GGUF_TYPE_INT8:    return message("%" PRId8, load<int8_t>(entry.data));
        case GGUF_TYPE_UINT16:  return message("%" PRIu16, load<uint16_t>(entry.data));
        case GGUF_TYPE_INT16:   return message("%" PRId16, load<int16_t>(entry.data));
        case GGUF_TYPE_UINT32:  return message("%" PRIu32, load<uint32_t>(entry.data));
        case GGUF_TYPE_INT32:   return message("%" PRId32, load<int32_t>(entry.data));
        case GGUF_TYPE_UINT64:  return message("%" PRIu64, load<uint64_t>(entry.data));
        case GGUF_TYPE_INT64:   return message("%" PRId64, load<int64_t>(entry.data));
        case GGUF_TYPE_BOOL:    return load<uint8_t>(entry.data) ? "true" : "false";
        case GGUF_TYPE_FLOAT32: return float_text(load<float>(entry.data), 9);
        case GGUF_TYPE_FLOAT64: return float_text(load<double>(entry.data), 17);
        case GGUF_TYPE_STRING:
            return std::string((const char *) entry.data + sizeof(uint64_t), entry.n_bytes - sizeof(uint64_t));
        default:                return "";
    }
}

} // namespace dqrelo
