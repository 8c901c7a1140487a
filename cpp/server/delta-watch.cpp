#include "delta-watch.h"

server_delta_watch::server_delta_watch(std::shared_ptr<server_delta_registry> registry, std::function<void()> keep_awake) :
    registry(std::move(registry)), keep_awake(std::move(keep_awake)), thread([this] { run(); }) {}

server_delta_watch::~server_delta_watch() {
    registry->end();
    thread.join();
}

void server_delta_watch::run() {
    std::vector<std::shared_ptr<server_delta_waiter>> waiters;
    while (registry->next_watch(waiters)) {
        keep_awake();
        for (const auto & waiter : waiters) {
            if (waiter->ask()) {
                registry->gone(*waiter);
            }
        }
    }
}
