// delta-turns.h: requests on their way to a delta: whose turn it is, and what each waits for. Guarded by the registry's lock.
#pragma once

#include "delta-memory.h"
#include "delta-names.h"
#include "delta-waiting.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>

class server_delta_claim;

// First come, first served: a request draws a ticket and, where too many deltas run, stands in line with it.
class server_delta_turns {
public:
    explicit server_delta_turns(size_t n_active_max) : n_active_max(n_active_max) {}

    uint64_t draw() { return n_tickets++; }
    void     line_up(const server_delta_claim & claim);
    void     leave(const server_delta_claim & claim);

    // Returns the only one of the line that may start next, or NULL.
    const server_delta_claim * first() const { return line.empty() ? nullptr : line.begin()->second; }

    // A request may start if nobody waits before it and its delta, which is loaded, runs already, or one more than `n_active` may.
    bool may_start(const server_delta_entry & entry, uint64_t ticket, size_t n_active) const;

    // Returns whether n deltas more may run at once, without a wait.
    bool may_start_more(size_t n, size_t n_active) const { return n_active_max == 0 || (line.empty() && n_active + n <= n_active_max); }

private:
    const size_t n_active_max; // 0 means no limit.
    // Keeps those that wait for their turn, by ticket. Each is on a loaded delta.
    std::map<uint64_t, const server_delta_claim *> line;
    uint64_t                                       n_tickets = 0;
};

// One request's claim: its place in the line, and what it waits for.
class server_delta_claim {
public:
    server_delta_claim(server_delta_waiter & waiter, server_delta_names & names, server_delta_memory & memory, server_delta_turns & turns);
    ~server_delta_claim() { drop(); }
    server_delta_claim(const server_delta_claim &)             = delete;
    server_delta_claim & operator=(const server_delta_claim &) = delete;

    // Returns whether the delta that is loaded stays for this request.
    bool is_on(const server_delta_entry & entry) const { return is_entitled && order == entry.order; }

    // Waits in line for a turn.
    void line_up(server_delta_entry & entry);

    // Waits for a load, out of line: whom it waits for may be behind it there. The ticket keeps its place.
    void wait_for(const server_delta_entry & entry, const std::shared_ptr<server_delta_job> & wanted);

    // The load is over.
    void loaded();

    // Waits for nothing any more.
    void drop();

    const uint64_t        ticket;
    server_delta_waiter & waiter;

private:
    server_delta_names &              names;
    server_delta_memory &             memory;
    server_delta_turns &              turns;
    std::shared_ptr<server_delta_job> job;                 // The request waits for it.
    bool                              is_entitled = false; // Counted in the entry's n_entitled.
    uint64_t                          order       = 0;     // Belongs to the entry: the name may be unloaded and come back meanwhile.
};
