// delta-gate.h: what stands before the HTTP routes. A request has one credential at most; a key of --delta-keys reaches only the endpoints
// that keep to its names, and every other endpoint, also one that is not known here, is closed to it.
#pragma once

#include "delta-caller.h"

#include <map>
#include <string>
#include <vector>

struct common_params;

namespace httplib {
struct Request;
struct Response;
} // namespace httplib

class server_delta_gate {
public:
    explicit server_delta_gate(const common_params & params);

    // False, after an answer of 400, where a request has several credentials: each reader of them could take another one.
    bool has_one_credential(const httplib::Request & req, httplib::Response & res) const;

    // Lets a request in whose key was accepted (empty: the server asks for none), and leaves its sender in `res` for the route. False,
    // after an answer of 403, where the endpoint is closed to the key.
    bool admit(const httplib::Request & req, httplib::Response & res, const std::string & api_key) const;

    // False, after an answer of 400, where a body nests its arrays and objects so deeply that copying or printing it would overflow the
    // stack: llama.cpp's JSON values do both recursively. A text inside of JSON may be JSON again, so it has a bound, too.
    static bool nests_within_bounds(const httplib::Request & req, httplib::Response & res);

    // Who was let in; nobody where that has not happened.
    static server_delta_caller caller_of(const httplib::Response & res);

private:
    bool is_open(const std::string & method, const std::string & path) const;

    std::map<std::string, std::vector<std::string>> keys;
    std::string                                     path_prefix;
    bool                                            is_router;
};
