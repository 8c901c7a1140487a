// message.h: one-line error texts. What comes from a file is made printable first, so that a hostile name cannot forge lines or terminal
// escapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dqrelo {

// Prints into a string, as printf does. MinGW would check the format by the rules of Microsoft's printf, which is not the one in use.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__MINGW32__)
__attribute__((format(printf, 1, 2)))
#endif
std::string message(const char * format, ...);

// `text` with what cannot be seen and what is no UTF-8 replaced by '?', cut after n_max bytes.
std::string printable(const std::string & text, size_t n_max = 120);

bool is_utf8(const char * text, size_t n_bytes);

// Returns a shape without trailing ones: "64x32"; at least one number is kept.
std::string shape_text(const int64_t ne[4]);

// Returns all four numbers, as digests write them: "64x32x1x1".
std::string full_shape_text(const int64_t ne[4]);

// Writes n numbers as they are, for shapes that may be impossible.
std::string dims_text(const uint64_t * ne, int n);

} // namespace dqrelo
