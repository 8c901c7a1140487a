// delta-waiting.h: the HTTP threads that wait for a delta. Each sleeps until something happens to the name that it waits for, or until its
// turn comes; one watch (delta-watch.h) looks whether their clients are still there, so that none of them has to wake for that.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// Whether the client of a waiting thread has gone.
using server_should_stop = std::function<bool()>;

// One thread that may wait. All but ask() and end() is guarded by the registry's lock.
class server_delta_waiter {
public:
    server_delta_waiter(const std::string & name, const server_should_stop & should_stop, bool is_admin) :
        name(name), is_admin(is_admin), should_stop(should_stop) {}

    const std::string       name;     // Names the delta.
    const bool              is_admin; // It loads or unloads, and is no request for the delta.
    std::condition_variable called;
    bool                    is_called = false; // The thread is to look again.
    bool                    is_gone   = false; // The thread's client has gone.

    // Returns whether the client has gone. Without the registry's lock: it asks the client's socket.
    bool ask();

    // The thread waits no more, and what should_stop refers to will go.
    void end();

private:
    std::mutex         asking;
    server_should_stop should_stop;
    bool               is_over = false;
};

// All that wait. Guarded by the registry's lock.
class server_delta_waiting {
public:
    // Calls that load and unload deltas may wait where as many requests as may do so already.
    static constexpr size_t N_ADMIN_MAX = 16;

    explicit server_delta_waiting(size_t n_max) : n_max(n_max) {}

    // Throws server_delta_error, a 503 that says when to come back, where too many wait already.
    void enter(const std::shared_ptr<server_delta_waiter> & waiter);
    void leave(const std::shared_ptr<server_delta_waiter> & waiter) { waiters.remove(waiter); }

    // One looks again, all that wait for a name, or all.
    static void wake(server_delta_waiter & waiter);
    void        wake(const std::string & name);
    void        wake_all();

    std::vector<std::shared_ptr<server_delta_waiter>> all() const { return { waiters.begin(), waiters.end() }; }
    size_t                                            n() const { return waiters.size(); }

private:
    const size_t                                    n_max;
    std::list<std::shared_ptr<server_delta_waiter>> waiters;
};
