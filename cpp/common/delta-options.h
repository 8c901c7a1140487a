// delta-options.h: what the command line says about deltas. A field of common_params; included by upstream's common.h, so it stays small.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

// One --delta [NAME=]PATH.
struct dqrelo_delta_source {
    std::string name; // what requests call it
    std::string path;
};

struct dqrelo_options {
    std::vector<dqrelo_delta_source> deltas;
    std::string                      deltas_dir; // --deltas-dir: each *.dq.gguf in it is served under its name, and loaded on first use
    std::vector<std::string>         pinned;     // --delta-pin: names that are never put out to make room
    size_t                           n_bytes_max   = 0;   // --delta-memory, of all that is loaded; 0: any
    size_t                           n_active_max  = 0;   // --delta-max-active; 0: any
    size_t                           n_waiting_max = 512; // --delta-max-waiting
    // --delta-admin, --no-delta-admin: whether deltas are loaded and unloaded over HTTP; unset: where an API key is asked for
    std::optional<bool> admin;
    // --delta-keys: API keys and the names that each may use; a key that is not in here may use all
    std::map<std::string, std::vector<std::string>> keys;
    double shutdown_s = 5.0; // --shutdown-timeout: how long requests may finish when the server is told to end

    bool unknown_is_base  = false; // --delta-unknown base: a request for a name that nobody has gets the base
    bool verify           = false; // --delta-verify: check every digest at load
    bool allow_other_base = false; // --delta-allow-other-base: accept another quantisation of the delta's base
    bool one_for_all      = false; // set by programs without names: the only delta serves every sequence
};
