// registry-fixture.h: the registry of deltas without a model. A loader and a main loop only pass things on, and there are no timed polls
// that would hide a lost call: what hangs is ended by ctest. Files are only looked at for their size.
#pragma once

#undef NDEBUG
#include "context/delta.h"
#include "delta-registry.h"
#include "delta-watch.h"

#include <cassert>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

constexpr size_t N_BYTES = 1000; // bytes of each file

inline std::filesystem::path folder() {
    const auto path = std::filesystem::temp_directory_path() / ("dqrelo-test-registry-" + std::to_string(std::random_device{}()));
    std::filesystem::create_directory(path);
    return path;
}

struct fixture {
    std::filesystem::path                  dir = folder();
    std::shared_ptr<server_delta_registry> registry;
    mutable std::vector<std::string>       order; // It has the order in which load_all loaded the names.

    explicit fixture(server_delta_limits limits) : registry(std::make_shared<server_delta_registry>(limits)) {}

    ~fixture() {
        for (const auto & weak : made) {
            if (const auto delta = weak.lock()) {
                delta->handle->n_bound = 0;
            }
        }
        std::filesystem::remove_all(dir);
    }

    std::string file(const std::string & name) const {
        const std::string path = (dir / (name + ".dq.gguf")).string();
        std::ofstream(path) << std::string(N_BYTES, 'x');
        return path;
    }

    std::shared_ptr<server_delta> make(const std::string & name, const std::string & path) const {
        auto delta     = std::make_shared<server_delta>();
        delta->name    = name;
        delta->path    = path;
        delta->hash    = "content of " + path;
        delta->stamp   = server_delta_stamp::of(path);
        delta->n_bytes = delta->stamp.n_bytes;
        delta->handle  = new dqrelo_delta();
        const std::lock_guard<std::mutex> lock(made_mutex);
        made.push_back(delta);
        return delta;
    }

    // A slot runs with it, and keeps it afterwards until the main loop takes it away.
    static void bind(const server_delta & delta) { delta.handle->n_bound = 1; }

    void add(const std::string & name) const { assert(registry->add(name, file(name), N_BYTES, false)); }

    void put(const std::string & name, bool is_bound = false) const {
        add(name);
        const auto delta       = make(name, registry->path_of(name));
        delta->handle->n_bound = is_bound;
        registry->put(delta);
    }

    // The loader's thread, until the registry ends. `wake` is what it does to the main loop.
    void load_all(const std::function<void()> & wake) const {
        server_delta_work work;
        while (registry->next_work(work)) {
            if (work.to_free) {
                registry->freed();
            } else if (work.to_size) {
                if (registry->begin_loading(work)) {
                    registry->sized(work, server_delta_stamp::of(work.to_size->path).n_bytes, "", {});
                }
            } else if (work.to_load) {
                order.push_back(work.name);
                const bool is_wanted = registry->begin_loading(work);
                registry->loaded(work, is_wanted ? make(work.name, work.to_load->path) : nullptr, "", {});
            } else {
                wake();
            }
        }
    }

    // One step of the main loop.
    void update() const {
        if (!registry->has_work()) {
            return;
        }
        for (const auto & delta : registry->retired()) {
            delta->handle->n_bound = 0;
            registry->unbound(delta);
        }
    }

private:
    mutable std::mutex                               made_mutex;
    mutable std::vector<std::weak_ptr<server_delta>> made; // The mutex guards it.
};

// A main loop that sleeps until it is woken.
class main_loop {
public:
    explicit main_loop(const fixture & f) : f(f), loader([&] { f.load_all([this] { wake(); }); }), loop([this] { run(); }) {}

    ~main_loop() {
        f.registry->end();
        loader.join();
        is_over = true;
        wake();
        loop.join();
    }

private:
    void wake() {
        const std::lock_guard<std::mutex> lock(mutex);
        n_calls++;
        called.notify_all();
    }

    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        while (!is_over) {
            called.wait(lock, [this] { return n_calls > 0; });
            n_calls--;
            lock.unlock();
            f.update();
            lock.lock();
        }
    }

    const fixture &         f;
    std::mutex              mutex;
    std::condition_variable called;
    int                     n_calls = 0;
    std::atomic<bool>       is_over{ false };
    std::thread             loader;
    std::thread             loop;
};

// Ends when n requests wait.
inline void wait_until_waiting(const fixture & f, size_t n) {
    while (f.registry->n_waiting() < n) {
        std::this_thread::yield();
    }
}

// Returns what the loader is told to do, without doing it.
inline server_delta_work next(const fixture & f) {
    server_delta_work work;
    assert(f.registry->next_work(work));
    return work;
}

// Returns whether the call went well; false for an error of this type, by default that the name was not what the caller thought.
inline bool changes(const std::function<void()> & call, int type = SERVER_DELTA_ERROR_CONDITION) {
    try {
        call();
        return true;
    } catch (const server_delta_error & e) {
        assert(e.type == type);
        assert(std::string(e.what()).find('\n') == std::string::npos);
        return false;
    }
}

// Returns the line that a call fails with, nothing where it goes well.
inline std::string error_text(const std::function<void()> & call) {
    try {
        call();
        return "";
    } catch (const server_delta_error & e) {
        return e.what();
    }
}

// One job from its beginning to its end.
inline void load_next(const fixture & f, size_t n_bytes = N_BYTES) {
    auto work = next(f);
    if (work.to_size) {
        f.registry->sized(work, n_bytes, "", {});
        work = next(f);
    }
    assert(work.to_load);
    assert(f.registry->begin_loading(work));
    auto delta     = f.make(work.name, work.to_load->path);
    delta->n_bytes = n_bytes;
    f.registry->loaded(work, delta, "", {});
}

// Unloads what no slot has: the main loop is not asked.
inline void unload_unbound(const fixture & f, const std::string & name) {
    std::thread unload([&] { f.registry->unload(name, nullptr); });
    assert(next(f).to_free);
    f.registry->freed();
    unload.join();
}
