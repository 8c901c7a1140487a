// delta-options.h: what the command line says about deltas. A field of common_params; included by upstream's common.h, so it stays small.
#pragma once

#include "blend-spec.h"

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

// One --delta [NAME=]PATH.
struct dqrelo_delta_source {
    std::string name; // Requests call the delta by this name.
    std::string path;
};

struct dqrelo_options {
    std::vector<dqrelo_delta_source> deltas;
    // --deltas-dir: each *.dq.gguf in this folder is served under its name, and loaded on first use.
    std::string               deltas_dir;
    std::vector<dqrelo_blend> blends;              // --blend: names for several deltas, each with its scale.
    std::vector<std::string>  pinned;              // --delta-pin: these names are never put out to make room.
    size_t                    n_bytes_max   = 0;   // --delta-memory: bytes that all loaded deltas may take; 0 means no limit.
    size_t                    n_active_max  = 0;   // --delta-max-active: deltas that may run at a time; 0 means no limit.
    size_t                    n_waiting_max = 512; // --delta-max-waiting: requests that may wait for a delta at a time.
    // --delta-admin, --no-delta-admin: whether deltas are loaded and unloaded over HTTP. If unset, they are where an API key is asked for.
    std::optional<bool> admin;
    // --delta-keys: API keys and the names that each may use. A key that is not in here may use all.
    std::map<std::string, std::vector<std::string>> keys;
    float  max_scale  = 4.0f; // --delta-max-scale: largest absolute value of a request's "delta_scale".
    double shutdown_s = 5.0;  // --shutdown-timeout: seconds that requests may take to finish when the server is told to end.

    bool unknown_is_base  = false; // --delta-unknown base: a request for a name that nobody has gets the base.
    bool verify           = false; // --delta-verify: every digest is checked at every load, not once for a file.
    bool allow_other_base = false; // --delta-allow-other-base: another quantisation of the delta's base is accepted.
    bool one_for_all      = false; // Programs without names set it: the only delta serves every sequence.

    bool names_are_prefixed = false; // --delta-names prefixed: a delta is called "base_delta" and "base:delta", too.
};
