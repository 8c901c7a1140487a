#include "delta-waiting.h"

#include "delta-ref.h"
#include "server-common.h"

// When a request that found too many others may come back: loads and turns take about that long.
static const int RETRY_AFTER_S = 2;

bool server_delta_waiter::ask() {
    const std::lock_guard<std::mutex> lock(asking);
    return !is_over && should_stop && should_stop();
}

void server_delta_waiter::end() {
    const std::lock_guard<std::mutex> lock(asking);
    is_over = true;
}

void server_delta_waiting::enter(const std::shared_ptr<server_delta_waiter> & waiter) {
    if (waiters.size() >= n_max + (waiter->is_admin ? N_ADMIN_MAX : 0)) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE,
                                 "delta '" + waiter->name + "': " + std::to_string(waiters.size()) +
                                     " requests wait for deltas already, as many as may (--delta-max-waiting). Try again later",
                                 RETRY_AFTER_S);
    }
    waiters.push_back(waiter);
}

void server_delta_waiting::wake(server_delta_waiter & waiter) {
    waiter.is_called = true;
    waiter.called.notify_one();
}

void server_delta_waiting::wake(const std::string & name) {
    for (const auto & waiter : waiters) {
        if (waiter->name == name) {
            wake(*waiter);
        }
    }
}

void server_delta_waiting::wake_all() {
    for (const auto & waiter : waiters) {
        wake(*waiter);
    }
}
