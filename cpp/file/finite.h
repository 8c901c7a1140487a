// finite.h: NaN and infinity in the numbers of a delta file: docs/format.md, section 4.
#pragma once

#include "file/gguf-header.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace dqrelo {

// Checks that the numbers of the metadata are finite and its BOOLs 0 or 1. Returns false with one line in `err` (without the file's name).
bool check_values(const gguf_header & header, std::string & err);

// Returns how many of the numbers in n_bytes of a type that a delta's tensors may have are NaN or infinite; of a quantised type, the blocks
// with such a scale. n_bytes is a multiple of the type's size.
size_t count_not_finite(ggml_type type, const uint8_t * data, size_t n_bytes);

// The same for the entries of a sparse weight that are F8, the upper bytes of F16.
size_t count_not_finite_f8(const uint8_t * data, size_t n_bytes);

// Returns what to say of a tensor with n_bad of them.
std::string not_finite_text(const std::string & tensor, size_t n_bad);

} // namespace dqrelo
