#include "delta-name-rules.h"

#include "server-common.h"

#include <algorithm>

static const size_t N_NAME_MAX = 200; // bytes

std::string server_delta_name_fault(const std::string & name) {
    const bool is_odd  = std::any_of(name.begin(), name.end(), [](unsigned char ch) {
        return ch < ' ' || ch == 127 || ch == '/' || ch == '\\' || ch == '"' || ch == '\'';
    });
    const bool is_utf8 = json::parse(safe_json_to_str(name)) == json(name); // Text that is not UTF-8 comes back changed.
    if (name.empty() || name.size() > N_NAME_MAX || is_odd || !is_utf8) {
        return string_format("a name has 1 to %zu bytes of UTF-8, without slashes, quotes and control characters", N_NAME_MAX);
    }
    return name[0] == '.' ? "a name does not begin with a dot" : "";
}
