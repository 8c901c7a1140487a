#include "delta-address.h"

#include "delta-ref.h"
#include "server-common.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <vector>

bool server_delta_is_address(const std::string & text) {
    const size_t n_scheme = text.find("://");
    return n_scheme != std::string::npos && n_scheme > 0 &&
           std::all_of(text.begin(), text.begin() + (std::ptrdiff_t) n_scheme,
                       [](unsigned char ch) { return std::isalnum(ch) || ch == '+' || ch == '-' || ch == '.'; });
}

void server_delta_check_address(const std::string & address) {
    static const size_t N_BYTES_MAX  = 4096;
    const bool          has_controls = std::any_of(address.begin(), address.end(), [](unsigned char ch) { return ch < ' ' || ch == 0x7f; });
    if (!server_delta_is_address(address) || has_controls || address.size() > N_BYTES_MAX) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST,
                                 "\"uri\": expected an address such as hf://owner/repo/file, without control characters and of at most " +
                                     std::to_string(N_BYTES_MAX) + " bytes");
    }
}

std::string server_delta_shown_address(const std::string & address) {
    static const size_t N_SCHEME_MAX = 20;
    return address.substr(0, std::min(address.find("://"), N_SCHEME_MAX)) + "://...";
}

// The statuses that an answer may have, as types of server_delta_error.
static const std::map<std::string, int> TYPES = {
    { "400", ERROR_TYPE_INVALID_REQUEST },   { "403", ERROR_TYPE_PERMISSION },     { "404", ERROR_TYPE_NOT_FOUND },
    { "413", SERVER_DELTA_ERROR_TOO_LARGE }, { "502", SERVER_DELTA_ERROR_SOURCE }, { "503", ERROR_TYPE_UNAVAILABLE },
    { "504", SERVER_DELTA_ERROR_LATE },
};

// Returns the lines of a text in which each one has an end and something before it; none where that, or a character, is not so.
static std::vector<std::string> lines_of(const std::string & text) {
    std::vector<std::string> lines;
    size_t                   begin = 0;
    for (size_t end; begin < text.size(); begin = end + 1) {
        end = text.find('\n', begin);
        if (end == std::string::npos || end == begin) {
            return {};
        }
        lines.push_back(text.substr(begin, end - begin));
    }
    const bool is_clean = std::none_of(text.begin(), text.end(), [](unsigned char ch) { return (ch < ' ' && ch != '\n') || ch == 0x7f; });
    return is_clean ? lines : std::vector<std::string>();
}

server_delta_fetched server_delta_read_answer(const std::string & answer) {
    const auto lines = answer.size() <= SERVER_DELTA_ANSWER_MAX ? lines_of(answer) : std::vector<std::string>();
    if (lines.size() == 3 && lines[0] == "200" && lines[1][0] == '/') {
        return { lines[1], lines[2] };
    }
    const auto type = lines.size() == 2 ? TYPES.find(lines[0]) : TYPES.end();
    if (type == TYPES.end()) {
        throw server_delta_error(SERVER_DELTA_ERROR_SOURCE, "the process that fetches addresses gave no answer that can be read");
    }
    throw server_delta_error(type->second, lines[1]);
}
