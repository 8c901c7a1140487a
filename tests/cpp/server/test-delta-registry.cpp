// The registry of deltas: what the loader and the main loop are told, and who goes.
#include "support/registry-fixture.h"

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

// A file system that does not answer: the job goes behind the others, and fails after a few times. Its name can be asked for again.
static void test_silent_files_go_behind_the_others() {
    const fixture f({});
    f.add("silent");
    f.add("good");
    std::string error;
    std::thread silent([&] { error = error_text([&] { f.registry->acquire("silent", nullptr); }); });
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

int main() {
    test_main_loop_is_called_again();
    test_nothing_waits_for_the_main_loop_without_need();
    test_what_is_bound_or_held_is_not_freed();
    test_unloaded_while_it_was_checked();
    test_memory_is_kept_for_a_load();
    test_no_delta_goes_before_it_served();
    test_the_latest_load_stays();
    test_silent_files_go_behind_the_others();
    test_unwanted_reads_are_given_up();
    printf("ok\n");
    return 0;
}
