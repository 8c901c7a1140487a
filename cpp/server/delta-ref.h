// delta-ref.h: which delta a request asked for. Lives in upstream's task_params, so it stays small.
#pragma once

#include "eog.h"

#include <stdexcept>
#include <string>

struct dqrelo_delta;

// What the server knows about one delta. Owned by server_delta_set, at a fixed address for the server's life.
struct server_delta {
    std::string    name;             // what requests call it
    std::string    path;
    std::string    hash;             // content hash, 64 hex digits
    dqrelo_delta * handle = nullptr; // NULL while the server sleeps; touched by the main loop only
    dqrelo_eog     eog;              // end tokens, empty: the vocabulary's
};

struct server_delta_ref {
    const server_delta * delta = nullptr;  // NULL: the base
    float                scale = 1.0f;     // multiplies the whole delta

    // The owner of what this reference computes: KV cells made under one key are never used under another. Empty: the base (or a delta scaled to nothing).
    std::string key() const;
};

// A request for a model that this server does not have: HTTP 404.
struct server_model_not_found : std::runtime_error {
    using std::runtime_error::runtime_error;
};
