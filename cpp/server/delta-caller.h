// delta-caller.h: the request that a thread serves. Upstream's functions that ask for a delta get only its body; what else counts is looked
// up here.
#pragma once

#include "delta-ref.h"
#include "server-http.h"

#include <functional>
#include <memory>
#include <string>

class server_delta_caller {
public:
    // From here to its end, this thread serves `req`. They nest.
    explicit server_delta_caller(const server_http_req & req);
    ~server_delta_caller();
    server_delta_caller(const server_delta_caller &)             = delete;
    server_delta_caller & operator=(const server_delta_caller &) = delete;

    // NULL where the thread serves none.
    static server_delta_caller * current();

    const server_http_req & req;

    // The request's API key, as upstream's check reads it; empty: none.
    std::string api_key() const;

    // What it holds, so that the template and the weights of one request are one file's.
    std::shared_ptr<const server_delta_use> use;

private:
    server_delta_caller * const previous;
};
