// delta-caller.h: who sent a request, and what he may do. Made by the gate (delta-gate.h) from the API key that was accepted; travels with
// the request as a value.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

class server_delta_caller {
public:
    // Nobody, who may do nothing: what did not come through the gate.
    server_delta_caller() = default;

    // The sender of a request with this key; empty where the server asks for none. `keys` are those of --delta-keys: any other one may do
    // everything.
    server_delta_caller(const std::string & api_key, const std::map<std::string, std::vector<std::string>> & keys) {
        const auto found = keys.find(api_key);
        is_limited_      = found != keys.end();
        names_           = is_limited_ ? found->second : std::vector<std::string>();
    }

    // May use the models of names() only, and change nothing.
    bool is_limited() const { return is_limited_; }

    const std::vector<std::string> & names() const { return names_; }

private:
    bool                     is_limited_ = true;
    std::vector<std::string> names_;
};
