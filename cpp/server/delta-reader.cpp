#include "delta-reader.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

// How long a file system may do nothing. Other loads wait meanwhile; one that needs longer is tried again behind them.
static const auto SILENCE_MAX = std::chrono::seconds(5);

static const auto ASK_PERIOD = std::chrono::milliseconds(50);

// Threads that hang at a time; each has a stack, and the memory of a file.
static const int N_HANGING_MAX = 8;

// What the two threads share.
struct shared_reading {
    std::atomic<bool>     is_left{ false }; // nobody waits for it any more
    std::atomic<uint64_t> n_signs{ 0 };     // of life

    std::mutex              mutex;
    std::condition_variable ended;
    bool                    is_over = false;
    server_delta_file_ptr   file;
    std::string             err;
};

static std::atomic<int> n_hanging{ 0 };

// dqrelo_file_params::abort_callback
static bool show_life(void * data) {
    shared_reading & r = *(shared_reading *) data;
    r.n_signs++;
    return r.is_left;
}

static void read(const std::shared_ptr<shared_reading> & r, const std::string & path, dqrelo_file_params params) {
    char text[1024]            = "";
    params.abort_callback      = show_life;
    params.abort_callback_data = r.get();
    server_delta_file_ptr file(dqrelo_file_open(path.c_str(), params, text, sizeof(text)));

    const std::lock_guard<std::mutex> lock(r->mutex);
    r->is_over = true;
    r->err     = text;
    if (r->is_left) {
        n_hanging--;
    } else {
        r->file = std::move(file);
    }
    r->ended.notify_all();
}

server_delta_reading server_delta_read_file(const std::string & path, const dqrelo_file_params & params,
                                            const std::function<bool()> & is_wanted) {
    if (n_hanging >= N_HANGING_MAX) {
        return { nullptr, path + ": not read: " + std::to_string(N_HANGING_MAX) + " reads hang. Does the file system answer?", true };
    }
    const auto r = std::make_shared<shared_reading>();
    try {
        std::thread([r, path, params] { read(r, path, params); }).detach();
    } catch (const std::system_error & e) { // too many threads
        return { nullptr, path + ": not read: " + e.what(), true };
    }

    std::unique_lock<std::mutex> lock(r->mutex);
    uint64_t                     n_signs = 0;
    auto                         since   = std::chrono::steady_clock::now();
    while (!r->ended.wait_for(lock, ASK_PERIOD, [&] { return r->is_over; })) {
        const auto now = std::chrono::steady_clock::now();
        if (r->n_signs != n_signs) {
            n_signs = r->n_signs;
            since   = now;
        }
        const bool is_silent = now - since > SILENCE_MAX;
        lock.unlock();
        const bool is_left = is_silent || !is_wanted();
        lock.lock();
        if (is_left && !r->is_over) {
            r->is_left = true;
            n_hanging++;
            return { nullptr, path + (is_silent ? ": not read, its file system does not answer" : ": not read, nobody wants it any more"),
                     is_silent };
        }
    }
    return { std::move(r->file), r->err, false };
}
