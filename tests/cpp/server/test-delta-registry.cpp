// The registry of deltas without a model: who waits for whom, who goes, who is woken. A loader and a main loop that only pass things on,
// and no timed polls that would hide a lost call: what hangs here is ended by ctest.
#undef NDEBUG
#include "delta-registry.h"

#include <cassert>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

static const size_t N_BYTES = 1000; // of each file

static std::filesystem::path folder() {
    const auto path = std::filesystem::temp_directory_path() / ("dqrelo-test-registry-" + std::to_string(std::random_device{}()));
    std::filesystem::create_directory(path);
    return path;
}

struct fixture {
    std::filesystem::path                  dir = folder();
    std::shared_ptr<server_delta_registry> registry;

    explicit fixture(server_delta_limits limits) : registry(std::make_shared<server_delta_registry>(limits)) {}

    ~fixture() { std::filesystem::remove_all(dir); }

    std::string file(const std::string & name) const {
        const std::string path = (dir / (name + ".dq.gguf")).string();
        std::ofstream(path) << std::string(N_BYTES, 'x');
        return path;
    }

    std::shared_ptr<server_delta> make(const std::string & name, const std::string & path) const {
        auto delta     = std::make_shared<server_delta>();
        delta->name    = name;
        delta->path    = path;
        delta->stamp   = server_delta_stamp::of(path);
        delta->n_bytes = delta->stamp.n_bytes;
        return delta;
    }

    void add(const std::string & name) const { assert(registry->add(name, file(name), false)); }

    void put(const std::string & name) const {
        add(name);
        registry->put(make(name, registry->path_of(name)));
    }

    // The loader's thread, until the registry ends. `wake` is what it does to the main loop.
    void load_all(const std::function<void()> & wake) const {
        server_delta_work work;
        while (registry->next_work(work)) {
            if (work.to_free) {
                registry->freed();
            } else if (work.to_load) {
                registry->loaded(work, make(work.name, work.to_load->path), "");
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
        if (const auto delta = registry->take_unchecked()) {
            registry->checked(delta, "");
        }
        for (const auto & delta : registry->retired()) {
            registry->unbound(delta);
        }
    }
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

// A call that reaches the main loop after it has done everything must not keep the next one from being made.
static void test_main_loop_is_called_again() {
    const fixture f({});
    f.put("a");
    f.put("b");
    std::thread       one([&] { f.registry->unload("a", nullptr); });
    server_delta_work work;
    assert(f.registry->next_work(work) && work.wants_main_loop);
    assert(f.registry->take_unchecked() == nullptr);
    assert(f.registry->next_work(work) && work.wants_main_loop); // the main loop looks, but did not unbind yet
    for (const auto & delta : f.registry->retired()) {
        f.registry->unbound(delta);
    }
    f.update(); // the second call finds nothing to do
    assert(f.registry->next_work(work) && work.to_free);
    f.registry->freed();
    one.join();

    std::thread two([&] { f.registry->unload("b", nullptr); });
    assert(f.registry->next_work(work) && work.wants_main_loop);
    f.update();
    assert(f.registry->next_work(work) && work.to_free);
    f.registry->freed();
    two.join();
}

// With room for one file, a delta that was loaded for a request serves it before it goes.
static void test_no_delta_goes_before_it_served() {
    fixture f({ N_BYTES, 0 });
    for (int i = 0; i < 6; i++) {
        f.add(std::to_string(i));
    }
    const main_loop          loop(f);
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; i++) {
        threads.emplace_back([&, i] { f.registry->acquire(std::to_string(i), nullptr); });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    for (const auto & [name, counts] : f.registry->all_counts()) {
        assert(counts.n_loads == 1);
    }
}

// Turns go by arrival, whatever the delta.
static void test_turns_are_by_arrival() {
    const int n = 6;
    fixture   f({ 0, 1 });
    for (int i = 0; i < n; i++) {
        f.put(std::to_string(i % 3)); // some names twice: an equal one may not overtake
        if (i == 2) {
            break;
        }
    }
    f.put("first");
    const main_loop          loop(f);
    auto                     first = f.registry->acquire("first", nullptr);
    std::vector<int>         order;
    std::mutex               mutex;
    std::vector<std::thread> threads;
    for (int i = 0; i < n; i++) {
        std::atomic<bool> is_waiting{ false };
        threads.emplace_back([&, i] {
            const auto                        use = f.registry->acquire(std::to_string(i % 3), [&is_waiting, asked = false]() mutable {
                if (!asked) {
                    asked      = true;
                    is_waiting = true; // stands in line
                }
                return false;
            });
            const std::lock_guard<std::mutex> lock(mutex);
            order.push_back(i);
        });
        while (!is_waiting) {
            std::this_thread::yield();
        }
    }
    first.reset();
    for (auto & thread : threads) {
        thread.join();
    }
    for (int i = 0; i < n; i++) {
        assert(order[i] == i);
    }
}

// Requests, loads, reloads and unloads at random over too little memory and too few turns: all end, and never is more loaded or running
// than allowed.
static void test_nobody_waits_for_ever(server_delta_limits limits) {
    fixture   f(limits);
    const int n_names = 5;
    for (int i = 0; i < n_names; i++) {
        f.add(std::to_string(i));
    }
    const main_loop          loop(f);
    std::atomic<int>         n_active[n_names + 1] = {};
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; t++) {
        threads.emplace_back([&, t] {
            std::mt19937 rng(t);
            for (int k = 0; k < 400; k++) {
                const int i = (int) (rng() % (n_names + 1)); // the last one comes and goes
                try {
                    const auto use =
                        f.registry->acquire(std::to_string(i), [&, polls = 0]() mutable { return rng() % 50 == 0 && polls++ > 0; });
                    n_active[i]++;
                    int n = 0;
                    for (const auto & active : n_active) {
                        n += active > 0;
                    }
                    assert(limits.n_active_max == 0 || n <= (int) limits.n_active_max);
                    std::this_thread::yield();
                    n_active[i]--;
                } catch (const server_delta_error &) { // unloaded, or the client went
                }
            }
        });
    }
    threads.emplace_back([&] {
        std::mt19937      rng(99);
        const std::string passing = std::to_string(n_names);
        for (int k = 0; k < 200; k++) {
            try {
                switch (rng() % 3) {
                    case 0: f.registry->add(passing, f.file(passing), false); break;
                    case 1: f.registry->unload(passing, nullptr); break;
                    default: f.registry->load("0", f.file("other"), true, nullptr); break;
                }
            } catch (const server_delta_error &) {
            }
        }
    });
    for (auto & thread : threads) {
        thread.join();
    }
    assert(limits.n_bytes_max == 0 || f.registry->n_resident() <= limits.n_bytes_max + N_BYTES); // a reload has both files for a while
    for (const auto & row : f.registry->rows()) {
        assert(row.n_running == 0 && row.entry.n_entitled == 0);
    }
}

int main() {
    test_main_loop_is_called_again();
    test_no_delta_goes_before_it_served();
    test_turns_are_by_arrival();
    for (const server_delta_limits limits : { server_delta_limits{ 0, 0 }, { N_BYTES, 0 }, { 2 * N_BYTES, 1 }, { N_BYTES, 1 }, { 0, 2 } }) {
        test_nobody_waits_for_ever(limits);
    }
    printf("ok\n");
    return 0;
}
