// delta-watch.h: the thread that looks after all requests that wait for deltas, now and then.
#pragma once

#include "delta-registry.h"

#include <functional>
#include <memory>
#include <thread>

class server_delta_watch {
public:
    // Runs until destroyed. While anybody waits, clients that have gone are noticed and `keep_awake` is called: the server has no task for
    // a request that waits, and would think that it is idle.
    server_delta_watch(std::shared_ptr<server_delta_registry> registry, std::function<void()> keep_awake);
    ~server_delta_watch();
    server_delta_watch(const server_delta_watch &)             = delete;
    server_delta_watch & operator=(const server_delta_watch &) = delete;

private:
    void run();

    const std::shared_ptr<server_delta_registry> registry;
    const std::function<void()>                  keep_awake;
    std::thread                                  thread;
};
