#include "file/gguf-header.h"

#include "file/message.h"

#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "delta files are little-endian and are read as they lie: a big-endian host is not supported"
#endif

namespace dqrelo {

namespace {

// Smallest possible sizes of an entry and a tensor, in bytes: they bound the header's counts before anything is allocated.
constexpr uint64_t MIN_ENTRY_BYTES  = 8 + 4 + 1;     // key length, type, and a value of one byte
constexpr uint64_t MIN_TENSOR_BYTES = 8 + 4 + 4 + 8; // name length, n_dims, type, and offset

template <typename T>
T load(const uint8_t * data) {
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
            err = message("ends at byte %zu, inside %s. Truncated download?", n_bytes, what.c_str());
            return nullptr;
        }
        const uint8_t * p = data + at;
        at += (size_t) n;
        return p;
    }

    template <typename T>
    T number(const std::string & what) {
        const uint8_t * p = take(sizeof(T), what);
        return p ? load<T>(p) : T(0);
    }

    std::string text(const std::string & what) {
        const uint64_t n = number<uint64_t>(what);
        if (err.empty() && n > n_bytes - at) {
            err = message("%s: a string of %" PRIu64 " bytes ends behind the file's %zu bytes. Truncated download?", what.c_str(), n,
                          n_bytes);
        }
        const uint8_t * p = take(n, what);
        if (p && !is_utf8((const char *) p, (size_t) n)) {
            err = message("%s: is not UTF-8", what.c_str());
            return "";
        }
        return p ? std::string((const char *) p, (size_t) n) : "";
    }
};

size_t element_bytes(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL: return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16: return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64: return 8;
        default: return 0; // Strings, arrays and unknown types have no fixed size.
    }
}

// Skips a string. Whether it is text is asked later, of the keys that matter: vocabularies may hold pieces of characters.
void skip_string(cursor & in, const std::string & what) {
    const uint64_t n = in.n_bytes - in.at < sizeof(uint64_t) ? UINT64_MAX : load<uint64_t>(in.data + in.at);
    if (n > in.n_bytes || sizeof(uint64_t) + n > in.n_bytes - in.at) {
        in.err = message("a string of %s ends behind the file's %zu bytes. Truncated download?", what.c_str(), in.n_bytes);
        return;
    }
    in.take(sizeof(uint64_t) + n, what);
}

bool read_value(cursor & in, gguf_entry & entry) {
    const std::string what = "metadata key '" + printable(entry.key) + "'";
    const size_t      size = element_bytes(entry.type);
    // A string has at least its length.
    if (entry.n > (in.n_bytes - in.at) / (size ? size : sizeof(uint64_t))) {
        in.err = message("%s has %" PRIu64 " items, but only %zu bytes are left. Truncated download?", what.c_str(), entry.n,
                         in.n_bytes - in.at);
        return false;
    }
    entry.data = in.data + in.at;
    if (size) {
        in.take(entry.n * size, what);
    } else {
        for (uint64_t i = 0; i < entry.n && in.err.empty(); ++i) {
            skip_string(in, what);
        }
    }
    entry.n_bytes = (size_t) (in.data + in.at - entry.data);
    return in.err.empty();
}

// Reads the type of a value or of an array's items. The number is checked before it becomes an enum, which may not hold every number.
bool read_type(cursor & in, const gguf_entry & entry, gguf_type & out) {
    const std::string key = "'" + printable(entry.key) + "'";
    const uint32_t    id  = in.number<uint32_t>("the type of " + key);
    if (in.err.empty() && id >= GGUF_TYPE_COUNT) {
        in.err = message("metadata key %s has the unknown value type %" PRIu32, key.c_str(), id);
    }
    if (in.err.empty() && id == GGUF_TYPE_ARRAY && entry.is_array) {
        in.err = message("metadata key %s is an array of arrays, which GGUF has no use for", key.c_str());
    }
    out = in.err.empty() ? (gguf_type) id : GGUF_TYPE_COUNT;
    return in.err.empty();
}

bool read_entry(cursor & in, uint64_t i, gguf_entry & entry) {
    entry.key = in.text(message("metadata key %" PRIu64, i));
    if (!read_type(in, entry, entry.type)) {
        return false;
    }
    if (entry.type == GGUF_TYPE_ARRAY) {
        entry.is_array = true;
        if (!read_type(in, entry, entry.type)) {
            return false;
        }
        entry.n = in.number<uint64_t>("the length of '" + printable(entry.key) + "'");
    }
    return in.err.empty() && read_value(in, entry);
}

bool read_shape(cursor & in, gguf_tensor_entry & tensor, const std::string & what) {
    const std::string place  = "the shape of '" + printable(tensor.name) + "'";
    const uint32_t    n_dims = in.number<uint32_t>(place);
    if (in.err.empty() && n_dims > GGML_MAX_DIMS) {
        in.err = message("%s has %" PRIu32 " dimensions, expected at most %d", what.c_str(), n_dims, GGML_MAX_DIMS);
    }
    uint64_t ne[GGML_MAX_DIMS] = { 1, 1, 1, 1 };
    for (uint32_t j = 0; j < n_dims && in.err.empty(); ++j) {
        ne[j] = in.number<uint64_t>(place);
    }
    if (in.err.empty() && !shape_from(ne, tensor.ne)) {
        in.err = what + " has the impossible shape " + dims_text(ne, (int) n_dims);
    }
    return in.err.empty();
}

bool read_tensor(cursor & in, uint64_t i, gguf_tensor_entry & tensor) {
    tensor.name             = in.text(message("the name of tensor %" PRIu64, i));
    const std::string what  = "tensor '" + printable(tensor.name) + "'";
    const std::string place = "the shape of '" + printable(tensor.name) + "'";
    if (!in.err.empty() || !read_shape(in, tensor, what)) {
        return false;
    }
    const uint32_t type = in.number<uint32_t>(place);
    tensor.offset_bytes = in.number<uint64_t>(place);
    if (!in.err.empty()) {
        return false;
    }
    // The ids of removed types have no block size.
    const int64_t n_block = type < GGML_TYPE_COUNT ? ggml_blck_size((ggml_type) type) : 0;
    if (n_block <= 0) {
        in.err = message("%s has the unknown type id %" PRIu32 ". Made by a newer or a forked llama.cpp?", what.c_str(), type);
        return false;
    }
    tensor.type = (ggml_type) type;
    if (tensor.ne[0] % n_block != 0) {
        in.err = message("%s has rows of %" PRId64 ", expected a multiple of %" PRId64 " for type %s", what.c_str(), tensor.ne[0], n_block,
                         storage_name(tensor.type).c_str());
        return false;
    }
    const uint64_t n_blocks = (uint64_t) (tensor.ne[0] / n_block * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]);
    if (n_blocks >
        (uint64_t) (INT64_MAX / 2) / ggml_type_size(tensor.type)) { // Smaller products are compared with the file's size in check_places.
        in.err = message("%s has shape %s, more than the file's %zu bytes can hold. Truncated download?", what.c_str(),
                         shape_text(tensor.ne).c_str(), in.n_bytes);
        return false;
    }
    tensor.n_bytes = (size_t) n_blocks * ggml_type_size(tensor.type);
    return true;
}

// Checks where the tensors lie: at multiples of the alignment, inside the file.
bool check_places(const gguf_header & header, size_t n_file_bytes, std::string & err) {
    for (const gguf_tensor_entry & tensor : header.tensors) {
        const std::string what = "tensor '" + printable(tensor.name) + "'";
        if (tensor.offset_bytes % header.alignment != 0) {
            err = message("%s begins at byte %" PRIu64 " of the data, expected a multiple of %" PRIu32, what.c_str(), tensor.offset_bytes,
                          header.alignment);
            return false;
        }
        // An offset behind the file would overflow the sum; its end is then named from there.
        const uint64_t offset = tensor.offset_bytes;
        const uint64_t begin  = header.data_offset_bytes + (offset < INT64_MAX ? offset : INT64_MAX);
        if (begin > n_file_bytes || tensor.n_bytes > n_file_bytes - begin) {
            err = message("%s ends at byte %" PRIu64 ", file has %zu bytes. Truncated download?", what.c_str(), begin + tensor.n_bytes,
                          n_file_bytes);
            return false;
        }
    }
    return true;
}

bool read_counts(cursor & in, gguf_header & out, uint64_t & n_tensors, uint64_t & n_entries) {
    const uint8_t * magic = in.take(4, "magic");
    if (magic == nullptr || memcmp(magic, GGUF_MAGIC, 4) != 0) {
        in.err = message("is not a GGUF file, it begins with '%s', expected 'GGUF'",
                         printable(std::string((const char *) in.data, in.n_bytes < 4 ? in.n_bytes : 4)).c_str());
        return false;
    }
    out.version = in.number<uint32_t>("the counts");
    n_tensors   = in.number<uint64_t>("the counts");
    n_entries   = in.number<uint64_t>("the counts");
    if (!in.err.empty()) {
        return false;
    }
    if (out.version != 0 && (out.version & 0xFFFF) == 0) {
        in.err = "is a big-endian GGUF file, expected little-endian";
    } else if (out.version != 2 && out.version != 3) {
        in.err = message("GGUF version %" PRIu32 ", expected 3", out.version);
    } else if (n_tensors > in.n_bytes / MIN_TENSOR_BYTES) {
        in.err = message("declares %" PRIu64 " tensors, more than its %zu bytes can hold. Truncated download?", n_tensors, in.n_bytes);
    } else if (n_entries > in.n_bytes / MIN_ENTRY_BYTES) {
        in.err =
            message("declares %" PRIu64 " metadata keys, more than its %zu bytes can hold. Truncated download?", n_entries, in.n_bytes);
    }
    return in.err.empty();
}

bool read_alignment(const gguf_header & header, uint32_t & alignment, std::string & err) {
    const gguf_entry * entry = header.find(GGUF_KEY_GENERAL_ALIGNMENT);
    if (entry == nullptr) {
        return true;
    }
    if (!header.get(GGUF_KEY_GENERAL_ALIGNMENT, alignment) || alignment == 0 || (alignment & (alignment - 1)) != 0) {
        err = message("%s is %s (%s), expected a power of two (UINT32)", GGUF_KEY_GENERAL_ALIGNMENT, printable(scalar_text(*entry)).c_str(),
                      value_type_text(entry->type, entry->is_array).c_str());
        return false;
    }
    return true;
}

template <typename T>
bool get_scalar(const gguf_header & header, const std::string & key, gguf_type type, T & out) {
    const gguf_entry * entry = header.find(key);
    if (entry == nullptr || entry->is_array || entry->type != type) {
        return false;
    }
    out = load<T>(entry->data);
    return true;
}

template <typename T>
bool get_array(const gguf_header & header, const std::string & key, gguf_type type, std::vector<T> & out) {
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
            err = message("metadata key '%s' occurs twice", printable(entry.key).c_str());
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
            err = message("tensor '%s' occurs twice", printable(tensor.name).c_str());
            return false;
        }
        out.tensors.push_back(std::move(tensor));
    }
    const size_t over     = in.at % out.alignment;
    out.end_bytes         = in.at;
    out.data_offset_bytes = over ? in.at + (out.alignment - over) : in.at;
    return check_places(out, n_bytes, err);
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

bool gguf_header::get(const std::string & key, uint32_t & out) const {
    return get_scalar(*this, key, GGUF_TYPE_UINT32, out);
}
bool gguf_header::get(const std::string & key, uint16_t & out) const {
    return get_scalar(*this, key, GGUF_TYPE_UINT16, out);
}
bool gguf_header::get(const std::string & key, double & out) const {
    return get_scalar(*this, key, GGUF_TYPE_FLOAT64, out);
}

bool gguf_header::get(const std::string & key, std::vector<uint32_t> & out) const {
    return get_array(*this, key, GGUF_TYPE_UINT32, out);
}
bool gguf_header::get(const std::string & key, std::vector<uint64_t> & out) const {
    return get_array(*this, key, GGUF_TYPE_UINT64, out);
}
bool gguf_header::get(const std::string & key, std::vector<float> & out) const {
    return get_array(*this, key, GGUF_TYPE_FLOAT32, out);
}

// Shortest decimal that reads back as the same value.
template <typename T>
static std::string float_text(T value, int n_digits_max) {
    std::string text;
    for (int n_digits = 1; n_digits <= n_digits_max; ++n_digits) {
        text = message("%.*g", n_digits, (double) value);
        if ((T) strtod(text.c_str(), nullptr) == value) {
            break;
        }
    }
    return text;
}

std::string value_type_text(gguf_type type, bool is_array) {
    // The names are in the order of gguf_type.
    static const char * const names[] = { "UINT8", "INT8",   "UINT16", "INT16",  "UINT32", "INT32",  "FLOAT32",
                                          "BOOL",  "STRING", "ARRAY",  "UINT64", "INT64",  "FLOAT64" };
    static_assert(sizeof(names) / sizeof(names[0]) == GGUF_TYPE_COUNT, "a name for each type");
    return is_array ? "[" + std::string(names[type]) + "]" : names[type];
}

// Whether `fits` holds for every string of an entry; true for other types.
template <typename F>
static bool each_string(const gguf_entry & entry, const F & fits) {
    const uint8_t * p = entry.data;
    for (uint64_t i = 0; entry.type == GGUF_TYPE_STRING && i < entry.n; ++i) {
        const size_t n = (size_t) load<uint64_t>(p);
        if (!fits((const char *) p + sizeof(uint64_t), n)) {
            return false;
        }
        p += sizeof(uint64_t) + n;
    }
    return true;
}

bool is_text(const gguf_entry & entry) {
    return each_string(entry, is_utf8);
}

bool has_nul(const gguf_entry & entry) {
    const auto is_whole = [](const char * text, size_t n) { return n == 0 || memchr(text, '\0', n) == nullptr; };
    return !is_whole(entry.key.data(), entry.key.size()) || !each_string(entry, is_whole);
}

std::string storage_name(ggml_type type) {
    std::string name = ggml_type_name(type);
    for (char & c : name) {
        c = c >= 'A' && c <= 'Z' ? (char) (c - 'A' + 'a') : c;
    }
    return name;
}

bool shape_from(const uint64_t ne[4], int64_t out[4]) {
    constexpr uint64_t N_MAX = uint64_t(1) << 62;

    uint64_t n_elements = 1;
    for (int j = 0; j < 4; ++j) {
        if (ne[j] < 1 || ne[j] > N_MAX / n_elements) {
            return false;
        }
        n_elements *= ne[j];
        out[j] = (int64_t) ne[j];
    }
    return true;
}

std::string scalar_text(const gguf_entry & entry) {
    if (entry.is_array) {
        return "";
    }
    switch (entry.type) {
        case GGUF_TYPE_UINT8: return message("%" PRIu8, load<uint8_t>(entry.data));
        case GGUF_TYPE_INT8: return message("%" PRId8, load<int8_t>(entry.data));
        case GGUF_TYPE_UINT16: return message("%" PRIu16, load<uint16_t>(entry.data));
        case GGUF_TYPE_INT16: return message("%" PRId16, load<int16_t>(entry.data));
        case GGUF_TYPE_UINT32: return message("%" PRIu32, load<uint32_t>(entry.data));
        case GGUF_TYPE_INT32: return message("%" PRId32, load<int32_t>(entry.data));
        case GGUF_TYPE_UINT64: return message("%" PRIu64, load<uint64_t>(entry.data));
        case GGUF_TYPE_INT64: return message("%" PRId64, load<int64_t>(entry.data));
        case GGUF_TYPE_BOOL: return load<uint8_t>(entry.data) ? "true" : "false";
        case GGUF_TYPE_FLOAT32: return float_text(load<float>(entry.data), 9);
        case GGUF_TYPE_FLOAT64: return float_text(load<double>(entry.data), 17);
        case GGUF_TYPE_STRING: return std::string((const char *) entry.data + sizeof(uint64_t), entry.n_bytes - sizeof(uint64_t));
        default: return "";
    }
}

} // namespace dqrelo
