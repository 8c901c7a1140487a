// delta-ref.h: which delta, or blend of deltas, a request asked for. Lives in upstream's task_params, so it stays small.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct server_delta;
class server_delta_registry;

// One request's hold on a loaded delta: while any copy of the pointer to it lives, the delta stays in memory. Made by
// server_delta_registry.
class server_delta_hold {
public:
    server_delta_hold(std::shared_ptr<server_delta_registry> registry, std::shared_ptr<server_delta> delta);
    ~server_delta_hold();
    server_delta_hold(const server_delta_hold &)             = delete;
    server_delta_hold & operator=(const server_delta_hold &) = delete;

    void count(uint64_t n_prompt, uint64_t n_generated) const; // tokens

    const std::shared_ptr<server_delta> delta;

private:
    const std::shared_ptr<server_delta_registry> registry;
};

// The holds on all that a request asked for: one delta, or the parts of a blend, in their order.
struct server_delta_use {
    std::vector<std::shared_ptr<const server_delta_hold>> holds;
};

// What an answer's "system_fingerprint" says of the weights that made it.
struct server_delta_mark {
    std::string text; // Follows upstream's build: "-dq-" and 16 hex digits; empty for the base.

    std::string build_info() const;
};

struct server_delta_ref {
    // NULL: the base. Mutable: a slot drops it when its task ends, though it keeps the task.
    mutable std::shared_ptr<const server_delta_use> use;
    std::vector<float>                              scales;   // Of each hold: multiplies the whole delta.
    size_t                                          lead = 0; // The one by whose rules text is made and ends.
    std::string                                     name;     // What answers call it.
    server_delta_mark                               mark;     // Set by server_delta_apply; stays when the task has let the delta go.

    // Returns the lead part; NULL for the base.
    server_delta * delta() const;

    // Returns the owner of what this reference computes: KV cells made under one key are never used under another. It has the content
    // hash and the scale of each part, in an order of its own. Empty: the base (or deltas scaled to nothing).
    std::string key() const;

    // The task ended after this many tokens: counts them for each part and lets the deltas go.
    void done(uint64_t n_prompt, uint64_t n_generated) const;
};

// Types of errors beside upstream's, which are the HTTP statuses: a change that was asked for under a condition which does not hold, and
// a file elsewhere that is too large, cannot be had, or does not come in time.
inline constexpr int SERVER_DELTA_ERROR_CONDITION = 412;
inline constexpr int SERVER_DELTA_ERROR_TOO_LARGE = 413;
inline constexpr int SERVER_DELTA_ERROR_SOURCE    = 502;
inline constexpr int SERVER_DELTA_ERROR_LATE      = 504;

// A request that a delta cannot serve. `type`, one of upstream's error_type or those above, decides the HTTP status. `retry_after_s` is
// when the same request may be served, 0: nobody knows.
struct server_delta_error : std::runtime_error {
    server_delta_error(int type, const std::string & message, int retry_after_s = 0) :
        std::runtime_error(message), type(type), retry_after_s(retry_after_s) {}
    const int type;
    const int retry_after_s;
};
