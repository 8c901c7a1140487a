// The registry's part that the loader and the main loop work off.
#include "delta-change.h"
#include "delta-registry.h"

// A load that waits for room lets this many later ones that fit go before it; then it is the next one.
static const int N_OVERTAKEN_MAX = 8;

// How often a file is tried whose file system does not answer; each time takes the loader some seconds.
static const int N_SILENT_MAX = 3;

using lock_t = std::lock_guard<std::mutex>;

//
// the loader
//

bool server_delta_registry::needs_loader() const {
    return is_ended || !jobs.waiting().empty() || memory.has_old_files();
}

// Returns whether the entry's job, whose size is known, may be loaded; if it can never be, it is over. `first_waiting` is the first one of
// the queue that waits for room, or NULL: others are sent away for that one only.
bool server_delta_registry::may_load(server_delta_entry & entry, server_delta_job *& first_waiting) {
    std::string err;
    switch (memory.room_for(names, entry, err)) {
        case server_delta_memory::room::never:
            SRV_WRN("%s\n", err.c_str());
            entry.reason = err;
            finish(entry, ERROR_TYPE_UNAVAILABLE, err);
            return false;
        case server_delta_memory::room::later:
            if (first_waiting == nullptr) {
                first_waiting = entry.job.get();
                memory.send_away(names, entry);
            }
            return false;
        case server_delta_memory::room::yes: break;
    }
    if (first_waiting != nullptr) {
        first_waiting->n_overtaken++;
    }
    return true;
}

// Finds the first job that may run. One that waits for room lets a few later ones by: what fits beside it need not wait for whom it waits
// for.
bool server_delta_registry::next_load(server_delta_work & next) {
    if (is_asleep) {
        return false;
    }
    server_delta_job * first_waiting = nullptr;
    for (const std::string & name : std::deque<std::string>(jobs.waiting())) {
        if (first_waiting != nullptr && first_waiting->n_overtaken >= N_OVERTAKEN_MAX) {
            return false;
        }
        server_delta_entry & entry = *names.find(name);
        if (entry.current && !entry.job->is_reload) { // It was told to leave, for a load that did not come about.
            entry.is_leaving = false;
            finish(entry, 0, "");
            continue;
        }
        next.name = name;
        if (!entry.job->is_sized) {
            next.to_size = entry.job;
            return true;
        }
        if (may_load(entry, first_waiting)) {
            next.to_load = entry.job;
            jobs.start(next.to_load);
            return true;
        }
    }
    return false;
}

bool server_delta_registry::next_to_free(server_delta_work & next) {
    next.to_free    = is_asleep ? nullptr : memory.next_to_free();
    next.makes_room = next.to_free && !jobs.waiting().empty();
    return next.to_free != nullptr;
}

bool server_delta_registry::next_work(server_delta_work & next, bool may_wait) {
    change mine(*this);
    while (!is_ended) {
        next = {};
        // A load that waits for room may send somebody away who can be freed at once.
        if (next_to_free(next) || next_load(next) || next_to_free(next)) {
            return true;
        }
        // The main loop, which may be idle, unbinds what no request holds any more.
        if (!is_asleep && !is_woken && memory.any_unheld()) {
            is_woken = next.wants_main_loop = true;
            return true;
        }
        if (!may_wait) {
            return true;
        }
        mine.tell(); // Jobs may have been finished without a load.
        loader_called.wait(mine.lock);
    }
    return false;
}

void server_delta_registry::freed() {
    const change mine(*this);
    memory.freed();
    forget_unused();
    rested.notify_all();
}

void server_delta_registry::sized(const server_delta_work & done, size_t n_bytes, const std::string & err,
                                  const server_delta_stamp & stamp) {
    const change mine(*this);
    is_loading = false;
    rested.notify_all();
    done.to_size->n_bytes  = n_bytes;
    done.to_size->is_sized = true;
    if (!err.empty()) {
        fail(done, err, stamp);
    }
}

void server_delta_registry::put_off(const server_delta_work & work, const std::string & err) {
    const change mine(*this);
    const auto & job = work.to_load ? work.to_load : work.to_size;
    if (jobs.is_at(*job)) {
        jobs.end();
    }
    const auto entry = names.find(work.name);
    if (entry == nullptr || entry->job != job) {
        return;
    }
    if (++job->n_silent < N_SILENT_MAX) {
        jobs.put_off(*entry);
        return;
    }
    SRV_WRN("delta '%s': %s\n", work.name.c_str(), err.c_str());
    names.counts(work.name).n_failures++;
    entry->reason = err;
    finish(*entry, ERROR_TYPE_UNAVAILABLE, "delta '" + work.name + "' cannot be served: " + err);
}

bool server_delta_registry::is_wanted(const server_delta_work & work) const {
    const lock_t lock(mutex);
    const auto & job = work.to_load ? work.to_load : work.to_size;
    return !is_ended && !is_stopping && !is_asleep && !job->is_done && (work.to_size || jobs.is_at(*job));
}

bool server_delta_registry::begin_loading(const server_delta_work & work) {
    const lock_t lock(mutex);
    is_loading = !is_ended && !is_asleep && (work.to_size || jobs.is_at(*work.to_load));
    return is_loading;
}

// The end of a job that failed, unless its name was unloaded meanwhile. After that of a file that was to replace another, the other one
// can be loaded again.
void server_delta_registry::fail(const server_delta_work & done, const std::string & err, const server_delta_stamp & stamp) {
    const auto & job   = done.to_load ? done.to_load : done.to_size;
    const auto   entry = names.find(done.name);
    if (entry != nullptr && entry->job == job) {
        names.counts(done.name).n_failures++;
        entry->reason    = err;
        entry->is_broken = entry->current == nullptr && job->path == entry->path;
        entry->broken    = stamp;
        finish(*entry, ERROR_TYPE_SERVER, "delta '" + done.name + "' cannot be served: " + err);
    }
}

void server_delta_registry::loaded(const server_delta_work & done, const std::shared_ptr<server_delta> & delta, const std::string & err,
                                   const server_delta_stamp & stamp) {
    const change mine(*this);
    is_loading = false;
    rested.notify_all();
    if (!jobs.is_at(*done.to_load)) { // The server slept meanwhile, so the job is still to be done.
        return;
    }
    jobs.end();
    const auto entry = names.find(done.name);
    if (!delta) {
        fail(done, err, stamp);
    } else if (entry == nullptr || entry->job != done.to_load) { // unloaded meanwhile
        memory.discard(delta);
    } else {
        take_over(delta);
        finish(*entry, 0, "");
    }
}

//
// the main loop
//

// Requests get this delta from here on.
void server_delta_registry::take_over(const std::shared_ptr<server_delta> & delta) {
    server_delta_entry & entry = *names.find(delta->name);
    if (entry.current) {
        memory.retire(entry);
    }
    entry.current    = delta;
    entry.path       = delta->path;
    entry.n_bytes    = delta->stamp.n_bytes;
    entry.hash       = delta->hash;
    entry.quality    = delta->quality;
    entry.ratio      = delta->ratio;
    entry.n_applied  = delta->applied.n_applied;
    entry.needed_us  = ggml_time_us();
    entry.is_leaving = false;
    entry.is_broken  = false;
    entry.reason.clear();
    names.counts(entry.name).n_loads++;
    names.counts(entry.name).load_s += delta->load_ms / 1000.0;
}

void server_delta_registry::put(const std::shared_ptr<server_delta> & delta) {
    const change mine(*this);
    take_over(delta);
}

std::vector<std::shared_ptr<server_delta>> server_delta_registry::retired() {
    const change mine(*this);
    is_woken = false;
    return memory.retired();
}

void server_delta_registry::unbound(const std::shared_ptr<server_delta> & delta) {
    const change mine(*this);
    memory.unbound(delta);
}

void server_delta_registry::sleep() {
    change mine(*this);
    is_asleep = true;
    rested.wait(mine.lock, [this] { return !is_loading && !memory.is_freeing(); });

    for (auto & [name, entry] : names.all()) {
        if (entry.current) {
            jobs.ask(entry, entry.path, false);
        }
    }
    jobs.end(); // Of a job that is not done, which stays in the queue.
    is_woken = false;
    for (const auto & delta : memory.take_all(names)) {
        delta->free_handle();
    }
    forget_unused();
    waiting.wake_all();
}

void server_delta_registry::wake() {
    const change mine(*this);
    is_asleep = false;
}

// Drops the names that were unloaded and whose last file is freed, and those whose file is gone and that nobody waits for.
void server_delta_registry::forget_unused() {
    for (const auto * entry : names.in_order()) {
        const bool is_unused = entry->is_draining || (entry->is_lost && !entry->current && !entry->job && entry->n_entitled == 0);
        if (is_unused && memory.old_files(entry->name).empty()) {
            const std::string name = entry->name;
            if (entry->is_lost) {
                SRV_INF("delta '%s': forgotten, its file is gone\n", name.c_str());
            }
            names.forget(name);
            waiting.wake(name);
        }
    }
}
