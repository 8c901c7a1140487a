// delta-ref.h: which delta a request asked for. Lives in upstream's task_params, so it stays small.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

struct server_delta;
class server_delta_registry;

// One request's hold on a loaded delta: while any copy of the pointer to it lives, the delta stays in memory. Made by
// server_delta_registry.
class server_delta_use {
public:
    server_delta_use(std::shared_ptr<server_delta_registry> registry, std::shared_ptr<server_delta> delta);
    ~server_delta_use();
    server_delta_use(const server_delta_use &)             = delete;
    server_delta_use & operator=(const server_delta_use &) = delete;

    void count(uint64_t n_prompt, uint64_t n_generated) const; // tokens

    const std::shared_ptr<server_delta> delta;

private:
    const std::shared_ptr<server_delta_registry> registry;
};

struct server_delta_ref {
    // NULL: the base. Mutable: a slot drops it when its task ends, though it keeps the task.
    mutable std::shared_ptr<const server_delta_use> use;
    float                                           scale = 1.0f; // Multiplies the whole delta.

    // Returns NULL for the base.
    server_delta * delta() const;

    // Returns the owner of what this reference computes: KV cells made under one key are never used under another. Empty: the base (or a
    // delta scaled to nothing).
    std::string key() const;

    // The task ended after this many tokens: counts them and lets the delta go.
    void done(uint64_t n_prompt, uint64_t n_generated) const;
};

// A request that a delta cannot serve. `type` is one of upstream's error_type: it decides the HTTP status. `retry_after_s` is when the same
// request may be served, 0: nobody knows.
struct server_delta_error : std::runtime_error {
    server_delta_error(int type, const std::string & message, int retry_after_s = 0) :
        std::runtime_error(message), type(type), retry_after_s(retry_after_s) {}
    const int type;
    const int retry_after_s;
};
