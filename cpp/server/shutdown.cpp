#include "shutdown.h"

#include "server-queue.h"
#include "server-task.h"

#include <chrono>
#include <cstdlib>

static const std::chrono::milliseconds STEP(20);

// How long requests may take to hear of the error, and then connections to close.
static const double ERROR_S = 2.0;
static const double CLOSE_S = 5.0;

// The error that ends a request; every waiting one gets a copy.
struct server_task_result_ending : server_task_result_error {
    server_task_result * clone() const override { return new server_task_result_ending(*this); }
};

static int64_t steps(double seconds) {
    return (int64_t) (seconds * 1000.0 / (double) STEP.count());
}

server_shutdown::server_shutdown(double drain_s, server_response & results, std::function<void()> end_loop) :
    drain_s(drain_s), results(results), end_loop(std::move(end_loop)), thread([this] { run(); }) {}

server_shutdown::~server_shutdown() {
    is_over = true;
    thread.join();
}

bool server_shutdown::drain(double seconds) const {
    for (int64_t i = steps(seconds); i > 0 && results.has_waiting() && !is_over; i--) {
        std::this_thread::sleep_for(STEP);
    }
    return !results.has_waiting();
}

void server_shutdown::send_errors() {
    auto error      = std::make_unique<server_task_result_ending>();
    error->err_type = ERROR_TYPE_UNAVAILABLE;
    error->err_msg  = "the server is shutting down";
    results.broadcast(std::move(error));
}

void server_shutdown::run() {
    while (!is_requested && !is_over) {
        std::this_thread::sleep_for(STEP);
    }
    if (!is_over && !drain(drain_s)) {
        SRV_WRN("requests still run after %g s (--shutdown-timeout): they end with an error\n", drain_s);
        send_errors();
        drain(ERROR_S);
    }
    if (!is_over) {
        end_loop();
    }
    // This ends what was posted behind the end, and answers that nobody reads.
    for (int64_t i = steps(CLOSE_S); i > 0 && !is_over; i--) {
        if (results.has_waiting()) {
            send_errors();
        }
        std::this_thread::sleep_for(STEP);
    }
    if (!is_over) {
        SRV_WRN("%s", "connections are still open: the server ends without them\n");
        common_log_flush(common_log_main());
        std::_Exit(EXIT_SUCCESS);
    }
}
