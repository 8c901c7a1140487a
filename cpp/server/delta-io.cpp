#include "delta-io.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

// How long a file system may do nothing. Others wait meanwhile; what needs longer is tried again behind them.
static const auto SILENCE_MAX = std::chrono::seconds(5);

static const auto ASK_PERIOD = std::chrono::milliseconds(50);

// Threads that hang at a time; each has a stack, and may have the memory of a file.
static const int N_HANGING_MAX = 8;

static std::atomic<int> n_hanging{ 0 };

// What the two threads share.
struct shared_io {
    server_delta_life       life;
    std::mutex              mutex;
    std::condition_variable ended;
    bool                    is_over = false;
    bool                    is_left = false;
};

static void run(const std::shared_ptr<shared_io> & shared, const std::function<void(server_delta_life &)> & io) {
    io(shared->life);
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->is_over = true;
    if (shared->is_left) {
        n_hanging--;
    }
    shared->ended.notify_all();
}

bool server_delta_run_io(const std::string & path, std::function<void(server_delta_life &)> io, const std::function<bool()> & is_wanted,
                         std::string & err, bool & is_silent) {
    is_silent = true;
    if (n_hanging >= N_HANGING_MAX) {
        err = path + ": not read: " + std::to_string(N_HANGING_MAX) + " reads hang. Does the file system answer?";
        return false;
    }
    const auto shared = std::make_shared<shared_io>();
    try {
        std::thread([shared, io = std::move(io)] { run(shared, io); }).detach();
    } catch (const std::system_error & e) { // too many threads
        err = path + ": not read: " + e.what();
        return false;
    }

    std::unique_lock<std::mutex> lock(shared->mutex);
    uint64_t                     n_signs = 0;
    auto                         since   = std::chrono::steady_clock::now();
    while (!shared->ended.wait_for(lock, ASK_PERIOD, [&] { return shared->is_over; })) {
        const auto now = std::chrono::steady_clock::now();
        if (shared->life.n() != n_signs) {
            n_signs = shared->life.n();
            since   = now;
        }
        is_silent = now - since > SILENCE_MAX;
        lock.unlock();
        const bool is_left = is_silent || !is_wanted();
        lock.lock();
        if (is_left && !shared->is_over) {
            shared->life.leave();
            shared->is_left = true;
            n_hanging++;
            err = path + (is_silent ? ": not read, its file system does not answer" : ": not read, nobody wants it any more");
            return false;
        }
    }
    is_silent = false;
    return true;
}
