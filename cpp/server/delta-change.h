// delta-change.h: how the registry's own functions hold its lock.
#pragma once

#include "delta-registry.h"

// A stretch under the lock in which the parts may change; those whom that concerns look again when it ends.
class server_delta_registry::change {
public:
    explicit change(server_delta_registry & registry) : registry(registry), lock(registry.mutex) {}

    ~change() { tell(); }

    change(const change &)             = delete;
    change & operator=(const change &) = delete;

    void tell() {
        registry.is_work = !registry.memory.retired().empty();
        if (!registry.is_work) {
            // The main loop's update() does not look any more, so a call on its way to it is lost.
            registry.is_woken = false;
        }
        if (registry.needs_loader()) {
            registry.loader_called.notify_one();
        }
        registry.call_first_in_line();
    }

    server_delta_registry &      registry;
    std::unique_lock<std::mutex> lock;
};

// What one HTTP thread does here: made before it locks, and ended after.
class server_delta_registry::visit {
public:
    visit(server_delta_registry & registry, const std::string & name, const server_should_stop & should_stop, bool is_admin) :
        waiter(std::make_shared<server_delta_waiter>(name, should_stop, is_admin)), registry(registry) {}

    ~visit() {
        if (is_in) {
            const std::lock_guard<std::mutex> lock(registry.mutex);
            registry.waiting.leave(waiter);
        }
        waiter->end();
    }

    visit(const visit &)             = delete;
    visit & operator=(const visit &) = delete;

    // Counts among those that wait. Throws server_delta_error where too many do.
    void enter() {
        if (is_in) {
            return;
        }
        registry.waiting.enter(waiter);
        is_in = true;
        if (registry.waiting.n() == 1) {
            registry.watch_called.notify_all();
        }
    }

    // Sleeps until it is woken. Throws server_delta_error when the client or the server is gone, and as enter() does.
    void pause(change & mine) {
        enter();
        mine.tell();
        waiter->called.wait(mine.lock, [&] { return waiter->is_called || waiter->is_gone || registry.is_stopping; });
        waiter->is_called = false;
        if (registry.is_stopping) {
            throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the server is shutting down");
        }
        if (waiter->is_gone) {
            throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the client has gone");
        }
    }

    const std::shared_ptr<server_delta_waiter> waiter;

private:
    server_delta_registry & registry;
    bool                    is_in = false;
};
