#include "file/message.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

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

// Returns whether a terminal shows nothing for the code point that starts at `s`, or turns what follows: C1 controls (U+0080 to U+009F),
// line and paragraph separators, marks and overrides of the writing direction, and U+FEFF.
static bool is_invisible(const unsigned char * s, size_t n_bytes) {
    if (n_bytes == 2) {
        return s[0] == 0xC2 && s[1] < 0xA0;
    }
    if (n_bytes != 3) {
        return n_bytes == 1 && (s[0] < 0x20 || s[0] == 0x7F);
    }
    const unsigned code = (s[0] & 0x0Fu) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
    return (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

std::string printable(const std::string & text) {
    constexpr size_t N_MAX = 120;

    std::string           out;
    const unsigned char * s = (const unsigned char *) text.data();
    for (size_t i = 0; i < text.size();) {
        const size_t n = utf8_sequence(s + i, text.size() - i);
        if (out.size() + n > N_MAX) {
            return out + "...";
        }
        if (n == 0 || is_invisible(s + i, n)) {
            out += '?';
            i += std::max<size_t>(n, 1);
        } else {
            out.append(text, i, n);
            i += n;
        }
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
