// What I/O on a thread of its own leaves to the thread that waits for it.
#undef NDEBUG
#include "delta-io.h"

#include <atomic>
#include <cassert>
#include <stdexcept>
#include <string>
#include <thread>

// Says on which thread it goes.
struct failure : std::runtime_error {
    failure(const std::string & text, std::atomic<std::thread::id> & gone_on) : std::runtime_error(text), gone_on(gone_on) {}
    ~failure() override { gone_on = std::this_thread::get_id(); }

    std::atomic<std::thread::id> & gone_on;
};

// I/O that fails, and that its own thread keeps until it may go. The sanitizer is to see no order in that.
struct failing_io {
    ~failing_io() {
        while (std::this_thread::get_id() != waiting && !may_go.load(std::memory_order_relaxed)) {
            std::this_thread::yield();
        }
    }

    int operator()(server_delta_life &) const { throw failure("no such file", gone_on); }

    std::atomic<std::thread::id> & gone_on;
    std::atomic<bool> &            may_go;
    std::thread::id                waiting;
};

static const auto WANTED = [] { return true; };

// The thread of the I/O may end long after it told of its end, so that it must not have what the waiting thread reads.
static void test_an_exception_is_left_to_who_waits() {
    static std::atomic<std::thread::id> gone_on{ std::thread::id() };
    static std::atomic<bool>            may_go{ false };
    bool                                is_caught = false;
    try {
        server_delta_do_io<int>("file", failing_io{ gone_on, may_go, std::this_thread::get_id() }, WANTED);
    } catch (const std::exception & e) {
        is_caught = std::string(e.what()) == "no such file";
    }
    assert(is_caught);
    assert(gone_on.load() == std::this_thread::get_id());
    may_go.store(true, std::memory_order_relaxed);
}

static void test_a_value_comes_back() {
    const auto result = server_delta_do_io<std::string>("file", [](server_delta_life &) { return std::string("content"); }, WANTED);
    assert(result.value == "content" && result.err.empty() && !result.is_silent);
}

int main() {
    test_an_exception_is_left_to_who_waits();
    test_a_value_comes_back();
    return 0;
}
