// The registry of deltas: who waits for whom, and who is woken.
#include "support/registry-fixture.h"

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

// A request that could only wait for itself ends with a line, and leaves nothing held.
static void test_a_blend_that_does_not_fit() {
    const auto refused = [](server_delta_limits limits, const char * what) {
        fixture f(limits);
        for (const char * name : { "a", "b", "c" }) {
            f.add(name);
        }
        const main_loop   loop(f);
        const std::string text = error_text([&] { f.registry->acquire_all({ "a", "b", "c" }, nullptr); });
        assert(text.find(what) != std::string::npos);
        for (const auto & row : f.registry->rows()) {
            assert(row.n_running == 0 && !row.entry.is_awaited);
        }
        assert(f.registry->acquire_all({ "c", "b" }, nullptr)->holds.size() == 2);
    };
    refused({ 2 * N_BYTES, 0 }, "other parts of the blend");
    refused({ 0, 2 }, "--delta-max-active");
}

int main() {
    test_turns_are_by_arrival();
    for (const server_delta_limits limits : { server_delta_limits{ 0, 0 }, { N_BYTES, 0 }, { 2 * N_BYTES, 1 }, { N_BYTES, 1 }, { 0, 2 } }) {
        test_nobody_waits_for_ever(limits, 1);
    }
    for (const server_delta_limits limits : { server_delta_limits{ 2 * N_BYTES, 0 }, { 2 * N_BYTES, 2 }, { 3 * N_BYTES, 2 }, { 0, 3 } }) {
        test_nobody_waits_for_ever(limits, 2);
    }
    test_what_fits_does_not_wait_for_what_does_not();
    test_who_waits_is_not_woken_for_others();
    test_only_so_many_wait();
    test_a_blend_that_does_not_fit();
    printf("ok\n");
    return 0;
}
