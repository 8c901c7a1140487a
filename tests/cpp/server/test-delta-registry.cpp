// The registry of deltas without a model: who waits for whom, who goes, who is woken. A loader and a main loop that only pass things on,
// and no timed polls that would hide a lost call: what hangs here is ended by ctest. Files are only looked at for their size.
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

static const size_t N_BYTES = 1000; // bytes of each file

static std::filesystem::path folder() {
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
static void wait_until_waiting(const fixture & f, size_t n) {
    while (f.registry->n_waiting() < n) {
        std::this_thread::yield();
    }
}

// Returns what the loader is told to do, without doing it.
static server_delta_work next(const fixture & f) {
    server_delta_work work;
    assert(f.registry->next_work(work));
    return work;
}

// Returns whether the call went well; false for an error of this type, by default that the name was not what the caller thought.
static bool changes(const std::function<void()> & call, int type = SERVER_DELTA_ERROR_CONDITION) {
    try {
        call();
        return true;
    } catch (const server_delta_error & e) {
        assert(e.type == type);
        assert(std::string(e.what()).find('\n') == std::string::npos);
        return false;
    }
}

// One job from its beginning to its end.
static void load_next(const fixture & f, size_t n_bytes = N_BYTES) {
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
static void unload_unbound(const fixture & f, const std::string & name) {
    std::thread unload([&] { f.registry->unload(name, nullptr); });
    assert(next(f).to_free);
    f.registry->freed();
    unload.join();
}

// A call that reaches the main loop after it has done everything must not keep the next one from being made.
static void test_main_loop_is_called_again() {
    const fixture f({});
    f.put("a", true);
    f.put("b", true);
    std::thread       one([&] { f.registry->unload("a", nullptr); });
    server_delta_work work;
    assert(f.registry->next_work(work) && work.wants_main_loop);
    const auto retired = f.registry->retired();
    assert(f.registry->next_work(work) && work.wants_main_loop); // The main loop looks, but did not unbind yet.
    for (const auto & delta : retired) {
        delta->handle->n_bound = 0;
        f.registry->unbound(delta);
    }
    f.update(); // The second call finds nothing to do.
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

// What no slot has is freed, and what was loaded serves, while the main loop is in a step that does not end.
static void test_nothing_waits_for_the_main_loop_without_need() {
    const fixture f({ N_BYTES, 0 });
    f.put("a");
    f.add("b");
    std::thread load([&] { f.registry->load("b", f.registry->path_of("b"), false, nullptr); });
    f.registry->sized(next(f), N_BYTES, "", {});
    assert(next(f).to_free);
    f.registry->freed();
    load_next(f);
    load.join();
    unload_unbound(f, "b");
    assert(!f.registry->has_work());
}

// What a request has stays until it ends, and what a slot has until the main loop took it away, whichever was first.
static void test_what_is_bound_or_held_is_not_freed() {
    for (const bool is_bound : { false, true }) {
        const fixture f({});
        f.put("a");
        auto              use = f.registry->acquire("a", nullptr);
        std::thread       unload([&] { f.registry->unload("a", nullptr); });
        server_delta_work work;
        wait_until_waiting(f, 1);
        assert(f.registry->next_work(work, false) && !work.to_free && !work.wants_main_loop);
        if (is_bound) {
            fixture::bind(*use->delta);
        }
        f.update(); // The slot is busy, so nothing goes.
        assert(f.registry->next_work(work, false) && !work.to_free);
        use.reset();
        assert(next(f).wants_main_loop);
        f.update();
        assert(next(f).to_free);
        f.registry->freed();
        unload.join();
    }
}

// A file that was read for a name which is gone never serves, and its memory is free again.
static void test_unloaded_while_it_was_checked() {
    const fixture f({});
    f.add("a");
    std::thread request([&] { assert(!changes([&] { f.registry->acquire("a", nullptr); }, ERROR_TYPE_NOT_FOUND)); });
    wait_until_waiting(f, 1);
    f.registry->sized(next(f), N_BYTES, "", {});
    const auto work = next(f);
    assert(work.to_load && f.registry->begin_loading(work));
    f.registry->unload("a", nullptr);
    request.join();
    f.registry->loaded(work, f.make("a", work.to_load->path), "", {});
    assert(!f.registry->has("a") && next(f).to_free);
    f.registry->freed();
    assert(f.registry->n_resident() == 0);
}

// The loader keeps the memory of a file that goes for a load which waits for it, of others not, and for no longer than that load waits.
static void test_memory_is_kept_for_a_load() {
    const fixture f({ N_BYTES, 0 });
    f.put("a", true);
    f.add("b");
    std::thread       two([&] { f.registry->load("b", f.registry->path_of("b"), false, nullptr); });
    server_delta_work work = next(f);
    f.registry->sized(work, N_BYTES, "", {});
    assert(next(f).wants_main_loop); // It has a unbound.
    f.update();
    work = next(f);
    assert(work.to_free && work.makes_room);
    f.registry->freed();
    load_next(f);
    two.join();
    assert(f.registry->next_work(work, false)); // It does not wait.
    assert(!work.to_free && !work.to_size && !work.to_load && !work.wants_main_loop);

    std::thread one([&] { f.registry->unload("b", nullptr); });
    work = next(f);
    assert(work.to_free && !work.makes_room);
    f.registry->freed();
    one.join();
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

// What no request asked for goes in the order in which its load was asked for, also where it was there already.
static void test_the_latest_load_stays() {
    const fixture   f({ 2 * N_BYTES, 0 });
    const main_loop loop(f);
    const auto      load = [&](const std::string & name) {
        f.registry->add(name, f.file(name), N_BYTES, false);
        f.registry->load(name, f.registry->path_of(name), false, nullptr);
    };
    const auto evicted = [&] {
        std::string names;
        for (const auto & [name, counts] : f.registry->all_counts()) {
            names += counts.n_evictions > 0 ? name : "";
        }
        return names;
    };
    for (const char * name : { "c", "d", "c", "b" }) {
        load(name);
    }
    assert(evicted() == "d");
    load("a");
    assert(evicted() == "cd");
}

// Turns go by arrival, whatever the delta.
static void test_turns_are_by_arrival() {
    const int n = 6;
    fixture   f({ 0, 1 });
    for (int i = 0; i < n; i++) {
        f.put(std::to_string(i % 3)); // Some names come twice: an equal one may not overtake.
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
        threads.emplace_back([&, i] {
            const auto                        use = f.registry->acquire(std::to_string(i % 3), nullptr);
            const std::lock_guard<std::mutex> lock(mutex);
            order.push_back(i);
        });
        wait_until_waiting(f, i + 1);
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
// than allowed. Each request is for up to `n_parts` deltas at once.
static void test_nobody_waits_for_ever(server_delta_limits limits, int n_parts) {
    fixture   f(limits);
    const int n_names = 5;
    for (int i = 0; i < n_names; i++) {
        f.add(std::to_string(i));
    }
    const main_loop          loop(f);
    const server_delta_watch watch(f.registry, [] {});
    std::atomic<int>         n_active[n_names + 1] = {};
    std::atomic<int>         n_served              = 0; // Counts requests for all n_parts.
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; t++) {
        threads.emplace_back([&, t] {
            std::mt19937 rng(t);
            for (int k = 0; k < 400; k++) {
                const int                i     = (int) (rng() % (n_names + 1)); // The last one comes and goes.
                const int                n_own = 1 + (int) (rng() % (unsigned) n_parts);
                std::vector<std::string> own;
                for (int p = 0; p < n_own; p++) {
                    own.push_back(std::to_string((i + p) % (n_names + 1)));
                }
                try {
                    const auto use = f.registry->acquire_all(own, [&, polls = 0]() mutable { return rng() % 50 == 0 && polls++ > 0; });
                    assert((int) use->holds.size() == n_own);
                    n_served += n_own == n_parts;
                    for (int p = 0; p < n_own; p++) {
                        n_active[(i + p) % (n_names + 1)]++;
                        fixture::bind(*use->holds[p]->delta);
                    }
                    int n = 0;
                    for (const auto & active : n_active) {
                        n += active > 0;
                    }
                    assert(limits.n_active_max == 0 || n <= (int) limits.n_active_max);
                    std::this_thread::yield();
                    for (int p = 0; p < n_own; p++) {
                        n_active[(i + p) % (n_names + 1)]--;
                    }
                } catch (const server_delta_error &) { // The delta was unloaded, or the client went.
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
                    case 0: f.registry->add(passing, f.file(passing), N_BYTES, false); break;
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
    // A reload has both files for a while.
    assert(limits.n_bytes_max == 0 || f.registry->n_resident() <= limits.n_bytes_max + N_BYTES);
    for (const auto & row : f.registry->rows()) {
        assert(row.n_running == 0 && row.entry.n_entitled == 0);
    }
    assert(f.registry->n_waiting() == 0);
}

// Old files of a name that still have requests count: they would add up without an end.
static void test_old_files_of_a_name_count() {
    const fixture f({ N_BYTES, 0 });
    f.put("a");
    auto old = f.registry->acquire("a", nullptr);
    f.registry->put(f.make("a", f.registry->path_of("a"))); // As after a reload, two files are in memory.
    std::thread reload([&] { f.registry->load("a", f.file("a"), true, nullptr); });
    wait_until_waiting(f, 1);
    f.registry->sized(next(f), N_BYTES, "", {});
    std::thread release([&] {
        assert(f.registry->n_resident() == 2 * N_BYTES);
        old.reset();
    });
    assert(next(f).wants_main_loop); // It is to unbind the first file, before the third one is loaded.
    release.join();
    f.update();
    assert(next(f).to_free);
    f.registry->freed();
    load_next(f);
    reload.join();
}

// A load that waits for room lets those by that fit, but not for ever.
static void test_what_fits_does_not_wait_for_what_does_not() {
    const fixture f({ 4 * N_BYTES, 0 });
    for (const char * name : { "used", "large" }) {
        f.add(name);
    }
    auto used     = f.make("used", f.registry->path_of("used"));
    used->n_bytes = 2 * N_BYTES;
    f.registry->put(used);
    auto        use = f.registry->acquire("used", nullptr);
    std::thread large([&] { f.registry->acquire("large", nullptr); });
    wait_until_waiting(f, 1);
    const auto work = next(f);
    f.registry->sized(work, 3 * N_BYTES, "", {});

    for (int i = 0; i < 8; i++) {
        const std::string name = "small-" + std::to_string(i);
        f.add(name);
        std::thread small([&] { f.registry->load(name, f.registry->path_of(name), false, nullptr); });
        wait_until_waiting(f, 2);
        load_next(f, 1);
        small.join();
    }
    f.add("last"); // This one is one too many: the large one is next.
    std::thread last([&] { f.registry->load("last", f.registry->path_of("last"), false, nullptr); });
    wait_until_waiting(f, 2);
    use.reset();
    {
        const main_loop loop(f);
        large.join();
        last.join();
    }
    assert((f.order == std::vector<std::string>{ "large", "last" }));
}

// Requests in line sleep until it is their turn, whatever others do meanwhile.
static void test_who_waits_is_not_woken_for_others() {
    const int     n = 20;
    const fixture f({ 0, 1 });
    f.put("a");
    f.put("b");
    auto                     use = f.registry->acquire("a", nullptr);
    std::atomic<int>         n_looks{ 0 };
    std::vector<std::thread> threads;
    for (int i = 0; i < n; i++) {
        threads.emplace_back([&] {
            f.registry->acquire("b", [&] {
                n_looks++;
                return false;
            });
        });
        wait_until_waiting(f, i + 1);
    }
    f.registry->add("other", "", N_BYTES, false);
    for (int i = 0; i < 1000; i++) {
        f.registry->count_request(*use->delta);
        f.registry->put(f.make("other", ""));
    }
    assert(n_looks == 0);
    use.reset();
    for (auto & thread : threads) {
        thread.join();
    }
}

// More than may wait are told so, at once; calls that change deltas get through. Those that wait get what they wait for.
static void test_only_so_many_wait() {
    server_delta_limits limits{ 0, 1 };
    limits.n_waiting_max = 3;
    const fixture f(limits);
    f.put("a");
    f.put("b");
    auto                     use = f.registry->acquire("a", nullptr);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) {
        threads.emplace_back([&] { f.registry->acquire("b", nullptr); });
        wait_until_waiting(f, i + 1);
    }
    try {
        f.registry->acquire("b", nullptr);
        assert(false);
    } catch (const server_delta_error & e) {
        assert(e.type == ERROR_TYPE_UNAVAILABLE && e.retry_after_s > 0);
    }
    f.registry->load("a", f.registry->path_of("a"), false, nullptr);
    use.reset();
    for (auto & thread : threads) {
        thread.join();
    }
    f.registry->acquire("b", nullptr);
}

// A file system that does not answer: the job goes behind the others, and fails after a few times. Its name can be asked for again.
static void test_silent_files_go_behind_the_others() {
    const fixture f({});
    f.add("silent");
    f.add("good");
    std::string error;
    std::thread silent([&] {
        try {
            f.registry->acquire("silent", nullptr);
        } catch (const server_delta_error & e) {
            error = e.what();
        }
    });
    wait_until_waiting(f, 1);
    auto work = next(f);
    assert(work.to_size && work.name == "silent");
    std::thread good([&] { f.registry->acquire("good", nullptr); });
    wait_until_waiting(f, 2);
    f.registry->put_off(work, "no answer");
    load_next(f);
    good.join();
    for (int i = 0; i < 2; i++) {
        work = next(f);
        assert(work.to_size && work.name == "silent" && f.registry->is_wanted(work));
        f.registry->put_off(work, "no answer");
    }
    silent.join();
    assert(error.find("no answer") != std::string::npos);
    assert(f.registry->rows()[0].entry.state() == std::string("registered"));
}

// A read whose name is unloaded, or whose server sleeps or ends, is not wanted any more, and its result is not used.
static void test_unwanted_reads_are_given_up() {
    const fixture f({});
    f.add("a");
    for (int i = 0; i < 2; i++) {
        std::thread request([&] {
            try {
                f.registry->acquire("a", nullptr);
            } catch (const server_delta_error &) { // The delta was unloaded.
            }
        });
        wait_until_waiting(f, 1);
        auto work = next(f);
        f.registry->sized(work, N_BYTES, "", {});
        work = next(f);
        assert(work.to_load && f.registry->is_wanted(work));
        if (i == 0) {
            f.registry->sleep(); // This does not wait for the read.
            assert(!f.registry->is_wanted(work) && !f.registry->begin_loading(work));
            f.registry->wake();
            assert(!f.registry->begin_loading(work)); // the read is of before
            f.registry->loaded(work, nullptr, "", {});
            load_next(f);
            request.join();
            unload_unbound(f, "a");
            f.add("a");
        } else {
            f.registry->unload("a", nullptr);
            assert(!f.registry->is_wanted(work));
            request.join();
            f.registry->loaded(work, nullptr, "given up", {});
            assert(f.registry->all_counts().at("a").n_failures == 0);
        }
    }
}

// A name whose file is gone stays while anybody has or waits for the delta, and one of the command line for ever.
static void test_lost_files() {
    const fixture f({});
    const auto    stamp = [&](const std::string & name) { return server_delta_stamp::of(f.file(name)); };
    f.put("named");
    assert(f.registry->found("idle", stamp("idle"), false) && f.registry->found("used", stamp("used"), false));
    f.registry->put(f.make("used", f.registry->path_of("used")));
    assert(f.registry->found("awaited", stamp("awaited"), false) && !f.registry->found("idle", stamp("another"), false));
    auto        use = f.registry->acquire("used", nullptr);
    std::thread request([&] {
        try {
            f.registry->acquire("awaited", nullptr);
            assert(false);
        } catch (const server_delta_error & e) {
            assert(std::string(e.what()).find("no such file") != std::string::npos);
        }
    });
    wait_until_waiting(f, 1);

    std::vector<std::string> paths;
    for (const char * name : { "named", "idle", "used", "awaited" }) {
        paths.push_back(f.registry->path_of(name));
        std::filesystem::remove(paths.back());
    }
    f.registry->lost(paths);
    assert(f.registry->has("named") && !f.registry->has("idle") && f.registry->has("used") && f.registry->has("awaited"));
    f.registry->sized(next(f), 0, "no such file", server_delta_stamp::of(paths[3]));
    request.join();
    f.registry->lost({});
    assert(!f.registry->has("awaited"));

    assert(f.registry->found("used", stamp("used"), false)); // it is back
    f.registry->lost({});
    unload_unbound(f, "named");
    assert(f.registry->has("used"));
    f.registry->lost({ paths[2] });
    use.reset();
    assert(f.registry->has("used") && f.registry->is_loaded("used"));
}

// What was refused is tried again when its file is not what was refused any more.
static void test_broken_files() {
    const fixture f({});
    f.add("a");
    const auto stamp = server_delta_stamp::of(f.registry->path_of("a"));
    for (int i = 0; i < 2; i++) {
        std::thread request([&] {
            try {
                f.registry->acquire("a", nullptr);
                assert(false);
            } catch (const server_delta_error & e) {
                assert(std::string(e.what()).find("damaged") != std::string::npos);
            }
        });
        f.registry->sized(next(f), 0, "damaged", stamp);
        request.join();
        assert(f.registry->is_broken("a") && f.registry->broken().size() == 1 && f.registry->broken()[0] == stamp);
        f.registry->changed({ server_delta_stamp::of(f.file("b")) });
        assert(f.registry->is_broken("a"));
        f.registry->changed({ stamp });
        assert(!f.registry->is_broken("a") && f.registry->broken().empty());
    }
}

// A request that could only wait for itself ends with a line, and leaves nothing held.
static void test_a_blend_that_does_not_fit() {
    const auto refused = [](server_delta_limits limits, const char * what) {
        fixture f(limits);
        for (const char * name : { "a", "b", "c" }) {
            f.add(name);
        }
        const main_loop loop(f);
        std::string     text;
        try {
            f.registry->acquire_all({ "a", "b", "c" }, nullptr);
        } catch (const server_delta_error & e) {
            text = e.what();
        }
        assert(text.find(what) != std::string::npos);
        for (const auto & row : f.registry->rows()) {
            assert(row.n_running == 0 && !row.entry.is_awaited);
        }
        assert(f.registry->acquire_all({ "c", "b" }, nullptr)->holds.size() == 2);
    };
    refused({ 2 * N_BYTES, 0 }, "other parts of the blend");
    refused({ 0, 2 }, "--delta-max-active");
}

// Of several controllers that saw the same content and ask for another file, or for the name to go, one changes it.
static void test_one_of_several_controllers_wins() {
    static const int N_CONTROLLERS = 8;

    fixture f({});
    f.add("a");
    const std::string first = f.registry->path_of("a");
    main_loop         loop(f);
    f.registry->load("a", first, false, nullptr);
    for (int round = 0; round < 20; round++) {
        const std::string        seen = f.registry->rows()[0].entry.hash;
        std::atomic<int>         n_won{ 0 };
        std::vector<std::thread> controllers;
        for (int i = 0; i < N_CONTROLLERS; i++) {
            const std::string path = f.file("a" + std::to_string(round) + "-" + std::to_string(i));
            controllers.emplace_back([&, path] { n_won += changes([&] { f.registry->load("a", path, true, nullptr, seen); }); });
        }
        for (auto & controller : controllers) {
            controller.join();
        }
        assert(n_won == 1);
        const auto row = f.registry->rows()[0];
        assert(row.entry.hash != seen && row.counts.n_loads == (uint64_t) round + 2);
    }
    const std::string now = f.registry->rows()[0].entry.hash;
    assert(!changes([&] { f.registry->load("a", first, false, nullptr, "content of another"); }));
    assert(!changes([&] { f.registry->unload("a", nullptr, "content of another"); }));
    assert(f.registry->rows()[0].entry.hash == now);
    assert(changes([&] { f.registry->unload("a", nullptr, now); }));
    assert(!f.registry->has("a"));

    f.add("b"); // What was never loaded has no content hash, so no condition holds.
    assert(!changes([&] { f.registry->load("b", f.registry->path_of("b"), false, nullptr, now); }));
}

// The number of loads under a name is its generation: it goes on where the name had left off.
static void test_generations_outlive_a_name() {
    fixture   f({});
    main_loop loop(f);
    uint64_t  before = 0;
    for (int i = 0; i < 3; i++) {
        f.add("a");
        f.registry->load("a", f.registry->path_of("a"), false, nullptr);
        f.registry->load("a", f.registry->path_of("a"), true, nullptr);
        const uint64_t now = f.registry->rows()[0].counts.n_loads;
        assert(now == before + 2);
        before = now;
        f.registry->unload("a", nullptr);
    }
}

int main() {
    test_lost_files();
    test_one_of_several_controllers_wins();
    test_generations_outlive_a_name();
    test_broken_files();
    test_main_loop_is_called_again();
    test_nothing_waits_for_the_main_loop_without_need();
    test_what_is_bound_or_held_is_not_freed();
    test_unloaded_while_it_was_checked();
    test_memory_is_kept_for_a_load();
    test_no_delta_goes_before_it_served();
    test_the_latest_load_stays();
    test_turns_are_by_arrival();
    test_old_files_of_a_name_count();
    test_what_fits_does_not_wait_for_what_does_not();
    test_who_waits_is_not_woken_for_others();
    test_only_so_many_wait();
    test_silent_files_go_behind_the_others();
    test_unwanted_reads_are_given_up();
    for (const server_delta_limits limits : { server_delta_limits{ 0, 0 }, { N_BYTES, 0 }, { 2 * N_BYTES, 1 }, { N_BYTES, 1 }, { 0, 2 } }) {
        test_nobody_waits_for_ever(limits, 1);
    }
    for (const server_delta_limits limits : { server_delta_limits{ 2 * N_BYTES, 0 }, { 2 * N_BYTES, 2 }, { 3 * N_BYTES, 2 }, { 0, 3 } }) {
        test_nobody_waits_for_ever(limits, 2);
    }
    test_a_blend_that_does_not_fit();
    printf("ok\n");
    return 0;
}
