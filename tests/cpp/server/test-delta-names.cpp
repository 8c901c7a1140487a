// The registry of deltas: what a name stands for, as its file and those who change it come and go.
#include "support/registry-fixture.h"

// A name whose file is gone stays while anybody has or waits for the delta, and one of the command line for ever.
static void test_lost_files() {
    const fixture f({});
    const auto    stamp = [&](const std::string & name) { return server_delta_stamp::of(f.file(name)); };
    f.put("named");
    assert(f.registry->found("idle", stamp("idle"), false) && f.registry->found("used", stamp("used"), false));
    f.registry->put(f.make("used", f.registry->path_of("used")));
    assert(f.registry->found("awaited", stamp("awaited"), false) && !f.registry->found("idle", stamp("another"), false));
    auto        use = f.registry->acquire("used", nullptr);
    std::thread request(
        [&] { assert(error_text([&] { f.registry->acquire("awaited", nullptr); }).find("no such file") != std::string::npos); });
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
        std::thread request([&] { assert(error_text([&] { f.registry->acquire("a", nullptr); }).find("damaged") != std::string::npos); });
        f.registry->sized(next(f), 0, "damaged", stamp);
        request.join();
        assert(f.registry->is_broken("a") && f.registry->broken().size() == 1 && f.registry->broken()[0] == stamp);
        f.registry->changed({ server_delta_stamp::of(f.file("b")) });
        assert(f.registry->is_broken("a"));
        f.registry->changed({ stamp });
        assert(!f.registry->is_broken("a") && f.registry->broken().empty());
    }
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

int main() {
    test_lost_files();
    test_broken_files();
    test_one_of_several_controllers_wins();
    test_generations_outlive_a_name();
    test_old_files_of_a_name_count();
    printf("ok\n");
    return 0;
}
