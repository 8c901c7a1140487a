// shutdown.h: how the server ends. What runs may finish for a while, then it ends with an error; a client that does not read its answer
// does not keep the process.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

struct server_response;

class server_shutdown {
public:
    // `results`: where requests wait. `end_loop` ends the main loop; it is called once, on this object's thread.
    server_shutdown(double drain_s, server_response & results, std::function<void()> end_loop);
    ~server_shutdown();
    server_shutdown(const server_shutdown &)             = delete;
    server_shutdown & operator=(const server_shutdown &) = delete;

    // Begins the end. Also from a signal handler: it only sets a flag.
    void request() { is_requested = true; }

private:
    void run();
    bool drain(double seconds) const; // Returns whether nothing waits any more.
    void send_errors();

    const double                drain_s;
    server_response &           results;
    const std::function<void()> end_loop;
    std::atomic<bool>           is_requested{ false };
    std::atomic<bool>           is_over{ false }; // The process has nothing left to wait for.
    std::thread                 thread;           // Comes last, because it uses the others.
};
