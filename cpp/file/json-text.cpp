#include "file/json-text.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace dqrelo {

namespace {

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// Reads forward through a text; what stands there is either taken as a whole, or the text is no JSON. The text ends with a NUL, which
// belongs to nothing.
class json_reader {
public:
    explicit json_reader(const char * text) : at(text) {}

    const char * at;

    // An object, a list or a scalar; `depth` more levels may follow.
    bool take_value(int depth) {
        switch (*at) {
            case '{': return depth > 0 && take_items('}', [&] { return take_member(depth - 1); });
            case '[': return depth > 0 && take_items(']', [&] { return take_value(depth - 1); });
            case '"': return take_string();
            case 't': return take("true");
            case 'f': return take("false");
            case 'n': return take("null");
            default: return take_number();
        }
    }

    void skip_space() { at += strspn(at, " \t\n\r"); }

private:
    bool take(const char * word) {
        const size_t n     = strlen(word);
        const bool   found = strncmp(at, word, n) == 0;
        at += found ? n : 0;
        return found;
    }

    // What stands between brackets, with commas between the items and space around each.
    template <typename F>
    bool take_items(char end, const F & take_item) {
        ++at; // the opening bracket
        skip_space();
        if (*at == end) {
            ++at;
            return true;
        }
        while (take_item()) {
            skip_space();
            const char c = *at++;
            if (c != ',') {
                return c == end;
            }
            skip_space();
        }
        return false;
    }

    bool take_member(int depth) {
        if (*at != '"' || !take_string()) {
            return false;
        }
        skip_space();
        if (!take(":")) {
            return false;
        }
        skip_space();
        return take_value(depth);
    }

    bool take_string() {
        for (++at; *at != '"'; ++at) {
            if ((unsigned char) *at < 0x20 || (*at == '\\' && !take_escape())) {
                return false;
            }
        }
        ++at;
        return true;
    }

    // From the backslash to the escape's last character.
    bool take_escape() {
        ++at;
        if (*at != 'u') {
            return *at != '\0' && strchr("\"\\/bfnrt", *at) != nullptr;
        }
        unsigned unit = 0;
        if (!take_unit(unit) || (unit >= 0xDC00 && unit <= 0xDFFF)) {
            return false;
        }
        if (unit < 0xD800 || unit > 0xDBFF) {
            return true;
        }
        // The other half of the pair must follow.
        if (at[1] != '\\' || at[2] != 'u') {
            return false;
        }
        at += 2;
        return take_unit(unit) && unit >= 0xDC00 && unit <= 0xDFFF;
    }

    // The four digits behind a 'u', up to the last of them.
    bool take_unit(unsigned & unit) {
        unit = 0;
        for (int i = 0; i < 4; ++i) {
            static const char digits[] = "0123456789abcdef";
            const char        c        = *++at;
            const char *      digit    = c == '\0' ? nullptr : strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c);
            if (digit == nullptr) {
                return false;
            }
            unit = unit * 16 + (unsigned) (digit - digits);
        }
        return true;
    }

    bool take_digits() {
        const char * begin = at;
        while (is_digit(*at)) {
            ++at;
        }
        return at > begin;
    }

    bool take_number() {
        const char * begin = at;
        at += *at == '-';
        const bool   starts_with_zero = *at == '0';
        const char * digits           = at;
        if (!take_digits() || (starts_with_zero && at > digits + 1)) {
            return false;
        }
        if (*at == '.') {
            ++at;
            if (!take_digits()) {
                return false;
            }
        }
        if (*at == 'e' || *at == 'E') {
            ++at;
            at += *at == '+' || *at == '-';
            if (!take_digits()) {
                return false;
            }
        }
        return std::isfinite(strtod(std::string(begin, at).c_str(), nullptr));
    }
};

} // namespace

bool is_json_object(const std::string & text, int max_depth) {
    json_reader reader(text.c_str());
    if (*reader.at != '{' || !reader.take_value(max_depth)) {
        return false;
    }
    reader.skip_space();
    return reader.at == text.c_str() + text.size();
}

} // namespace dqrelo
