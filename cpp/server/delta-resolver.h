// delta-resolver.h: the process that fetches files from elsewhere. The server itself downloads nothing: dqrelo-server starts that process
// with --load-from, and leaves one end of a pair of sockets to this program, which no other process can reach.
#pragma once

#include "delta-address.h"
#include "delta-waiting.h"

#include <atomic>
#include <memory>
#include <string>

class server_delta_resolver {
public:
    // Takes the socket over. An answer may take `timeout_s` seconds, and a little more for its way.
    server_delta_resolver(int channel, double timeout_s) : channel(channel), timeout_s(timeout_s) {}
    ~server_delta_resolver();
    server_delta_resolver(const server_delta_resolver &)             = delete;
    server_delta_resolver & operator=(const server_delta_resolver &) = delete;

    // Returns the one that this program was started with (variable DQRELO_RESOLVER, "SOCKET:SECONDS"); NULL where it was started without.
    // Throws std::invalid_argument where the variable says what cannot be.
    static std::unique_ptr<server_delta_resolver> inherited();

    // Fetches what an address names, on the thread that calls, which holds no lock. Throws server_delta_error where it cannot be had or is
    // not allowed, where the time is over, the client has gone (then the download ends, too), or the server stops.
    server_delta_fetched resolve(const std::string & address, const server_should_stop & should_stop) const;

    // Calls of resolve() end from here on. Safe in a signal handler.
    void stop() { is_stopping = true; }

private:
    const int         channel;
    const double      timeout_s;
    std::atomic<bool> is_stopping{ false };
};
