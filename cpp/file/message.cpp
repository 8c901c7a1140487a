#include "file/message.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <iterator>

namespace dqrelo {

std::string message(const char * format, ...) {
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(nullptr, 0, format, args);
    va_end(args);
    std::string text(n > 0 ? (size_t) n : 0, '\0');
    if (n > 0) {
        vsnprintf(&text[0], (size_t) n + 1, format, again);
    }
    va_end(again);
    return text;
}

// Length of the UTF-8 sequence that starts at `s`, or 0 if there is none (overlong forms, surrogates and cut sequences included).
static size_t utf8_sequence(const unsigned char * s, size_t n_bytes) {
    if (s[0] < 0x80) {
        return 1;
    }
    const size_t n = s[0] >= 0xC2 && s[0] <= 0xDF ? 2 : (s[0] & 0xF0) == 0xE0 ? 3 : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4 : 0;
    if (n == 0 || n > n_bytes) {
        return 0;
    }
    for (size_t i = 1; i < n; ++i) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    const bool overlong  = (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90);
    const bool surrogate = s[0] == 0xED && s[1] >= 0xA0;
    const bool too_large = s[0] == 0xF4 && s[1] >= 0x90;
    return overlong || surrogate || too_large ? 0 : n;
}

bool is_utf8(const char * text, size_t n_bytes) {
    const unsigned char * s = (const unsigned char *) text;
    for (size_t i = 0; i < n_bytes;) {
        const size_t n = utf8_sequence(s + i, n_bytes - i);
        if (n == 0) {
            return false;
        }
        i += n;
    }
    return true;
}

// Code points for which a terminal shows nothing, or which turn what follows: controls, line and paragraph separators, marks and overrides
// of the writing direction, and everything else that Unicode calls a format character. The Python reader has the same list.
static const uint32_t INVISIBLE[][2] = {
    { 0x00, 0x1F },       { 0x7F, 0x9F },       { 0xAD, 0xAD },       { 0x600, 0x605 },     { 0x61C, 0x61C },     { 0x6DD, 0x6DD },
    { 0x70F, 0x70F },     { 0x890, 0x891 },     { 0x8E2, 0x8E2 },     { 0x180E, 0x180E },   { 0x200B, 0x200F },   { 0x2028, 0x202E },
    { 0x2060, 0x206F },   { 0xFEFF, 0xFEFF },   { 0xFFF9, 0xFFFB },   { 0x110BD, 0x110BD }, { 0x110CD, 0x110CD }, { 0x13430, 0x1343F },
    { 0x1BCA0, 0x1BCA3 }, { 0x1D173, 0x1D17A }, { 0xE0000, 0xE007F },
};

// Whether the code point of the UTF-8 sequence of n bytes at `s` is one of them.
static bool is_invisible(const unsigned char * s, size_t n) {
    uint32_t code = n == 1 ? s[0] : s[0] & (0xFFu >> (n + 1));
    for (size_t i = 1; i < n; ++i) {
        code = code << 6 | (s[i] & 0x3Fu);
    }
    return std::any_of(std::begin(INVISIBLE), std::end(INVISIBLE),
                       [=](const uint32_t (&range)[2]) { return code >= range[0] && code <= range[1]; });
}

std::string printable(const std::string & text, size_t n_max) {
    std::string           out;
    const unsigned char * s = (const unsigned char *) text.data();
    for (size_t i = 0; i < text.size();) {
        const size_t n        = utf8_sequence(s + i, text.size() - i);
        const bool   is_shown = n > 0 && !is_invisible(s + i, n);
        const size_t n_out    = is_shown ? n : 1;
        if (out.size() + n_out > n_max) {
            return out + "...";
        }
        if (is_shown) {
            out.append(text, i, n);
        } else {
            out += '?';
        }
        i += std::max<size_t>(n, 1);
    }
    return out;
}

std::string dims_text(const uint64_t * ne, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) {
        out += (i > 0 ? "x" : "") + std::to_string(ne[i]);
    }
    return out;
}

std::string full_shape_text(const int64_t ne[4]) {
    const uint64_t dims[4] = { (uint64_t) ne[0], (uint64_t) ne[1], (uint64_t) ne[2], (uint64_t) ne[3] };
    return dims_text(dims, 4);
}

std::string shape_text(const int64_t ne[4]) {
    int n_dims = 4;
    while (n_dims > 1 && ne[n_dims - 1] == 1) {
        --n_dims;
    }
    const uint64_t dims[4] = { (uint64_t) ne[0], (uint64_t) ne[1], (uint64_t) ne[2], (uint64_t) ne[3] };
    return dims_text(dims, n_dims);
}

} // namespace dqrelo
