#include "delta-caller.h"

#include <algorithm>
#include <cctype>

static thread_local server_delta_caller * this_threads = nullptr;

server_delta_caller::server_delta_caller(const server_http_req & req) : req(req), previous(this_threads) {
    this_threads = this;
}

server_delta_caller::~server_delta_caller() {
    this_threads = previous;
}

server_delta_caller * server_delta_caller::current() {
    return this_threads;
}

static bool is_same_header(const std::string & a, const std::string & b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

std::string server_delta_caller::api_key() const {
    const std::string prefix = "Bearer ";
    for (const char * header : { "Authorization", "X-Api-Key" }) {
        for (const auto & [name, value] : req.headers) {
            if (is_same_header(name, header) && !value.empty()) {
                return value.compare(0, prefix.size(), prefix) == 0 ? value.substr(prefix.size()) : value;
            }
        }
    }
    return "";
}
