// gguf-header.h: bounds-checked parser of a GGUF header in memory.
//
// The parser of ggml reports errors through the global log and refuses nothing that gguf.md allows but a delta may not have. This one says
// in one line what is wrong, allocates no more than a small multiple of the header's own bytes, and keeps where each value lies.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace dqrelo {

// A metadata value. `data` points into the parsed bytes, at no particular alignment; an array of strings is a sequence of {u64 length,
// bytes}.
struct gguf_entry {
    std::string     key;
    gguf_type       type     = GGUF_TYPE_COUNT; // Applies to the elements of an array.
    bool            is_array = false;
    uint64_t        n        = 1; // Counts the elements.
    const uint8_t * data     = nullptr;
    size_t          n_bytes  = 0;
};

struct gguf_tensor_entry {
    std::string name;
    ggml_type   type         = GGML_TYPE_COUNT;
    int64_t     ne[4]        = { 1, 1, 1, 1 };
    uint64_t    offset_bytes = 0; // bytes from the start of the data section
    size_t      n_bytes      = 0; // bytes without padding
};

struct gguf_header {
    uint32_t                       version           = 0;
    uint32_t                       alignment         = GGUF_DEFAULT_ALIGNMENT;
    size_t                         end_bytes         = 0; // The header ends there, in bytes from the start of the file.
    size_t                         data_offset_bytes = 0; // Locates the data section, in bytes from the start of the file.
    std::vector<gguf_entry>        entries;
    std::vector<gguf_tensor_entry> tensors;

    // Returns nullptr if the key is absent.
    const gguf_entry * find(const std::string & key) const;

    // Reads a value by its type. Returns false if the key is absent or has another type.
    bool get(const std::string & key, std::string & out) const;
    bool get(const std::string & key, uint32_t & out) const;
    bool get(const std::string & key, uint16_t & out) const;
    bool get(const std::string & key, double & out) const;
    bool get(const std::string & key, std::vector<std::string> & out) const;
    bool get(const std::string & key, std::vector<uint32_t> & out) const;
    bool get(const std::string & key, std::vector<uint64_t> & out) const;
    bool get(const std::string & key, std::vector<float> & out) const;

    std::unordered_map<std::string, size_t> index; // Maps a key to its place in `entries`.
};

// Parses the header of a file that is wholly in [data, data + n_bytes). Checks magic, version 2 or 3, that every count and length fits into
// the file, that keys and tensor names are unique UTF-8, types known, and every tensor at a multiple of the alignment inside the file.
// Order and gaps are not checked. Returns false with one line in `err` (without the file's name).
bool parse_gguf_header(const uint8_t * data, size_t n_bytes, gguf_header & out, std::string & err);

// Returns the type of a value as messages name it: "UINT32", "[STRING]".
std::string value_type_text(gguf_type type, bool is_array);

// Returns false if one of the entry's strings is not UTF-8. True for other types.
bool is_text(const gguf_entry & entry);

// Returns true if the entry's key or one of its strings has a NUL byte.
bool has_nul(const gguf_entry & entry);

// Returns ggml's name of a storage type in lower case, such as "f16" or "q4_k".
std::string storage_name(ggml_type type);

// Four numbers of a file as a shape. False if one is 0 or the product is over 2^62, which keeps sizes in bytes of all types apart from
// overflow.
bool shape_from(const uint64_t ne[4], int64_t out[4]);

// Returns a scalar as text; an empty string for arrays.
std::string scalar_text(const gguf_entry & entry);

} // namespace dqrelo
