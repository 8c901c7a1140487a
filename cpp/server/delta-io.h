// delta-io.h: file I/O on threads that may hang: on a file system that does not answer, a system call can last for ever. Such a thread has
// nothing but what its I/O owns, so it can be left behind: by a loader that goes on, by a request that is answered, by a server that ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

// What I/O shows of itself while it runs.
class server_delta_life {
public:
    // A sign of life. True: nobody waits any more.
    bool show() {
        n_signs++;
        return is_left;
    }

    void     leave() { is_left = true; }
    uint64_t n() const { return n_signs; }

private:
    std::atomic<bool>     is_left{ false };
    std::atomic<uint64_t> n_signs{ 0 };
};

// What became of I/O.
template <typename T>
struct server_delta_io_result {
    std::optional<T> value; // none with one line in `err`
    std::string      err;
    bool             is_silent = false; // nothing happened for some seconds: it may go better another time
};

// Runs `io` on a thread of its own. Returns false with one line in `err` where it was not begun, or is left behind: without a sign of life
// for some seconds, or not wanted any more, which is asked all the time on this thread. `path` is what the line is about.
bool server_delta_run_io(const std::string & path, std::function<void(server_delta_life &)> io, const std::function<bool()> & is_wanted,
                         std::string & err, bool & is_silent);

// The same with the value that `io`, which owns all that it uses, returns. What it throws is thrown here.
template <typename T>
server_delta_io_result<T> server_delta_do_io(const std::string & path, std::function<T(server_delta_life &)> io,
                                             const std::function<bool()> & is_wanted) {
    struct outcome {
        std::optional<T>   value;
        std::exception_ptr thrown;
    };
    const auto out = std::make_shared<outcome>();
    const auto run = [out, io = std::move(io)](server_delta_life & life) {
        try {
            out->value = io(life);
        } catch (...) {
            out->thrown = std::current_exception();
        }
    };
    server_delta_io_result<T> result;
    if (!server_delta_run_io(path, run, is_wanted, result.err, result.is_silent)) {
        return result;
    }
    if (out->thrown) {
        std::rethrow_exception(std::exchange(out->thrown, nullptr)); // The other thread, which may go later, keeps nothing of it.
    }
    result.value = std::move(out->value);
    return result;
}
