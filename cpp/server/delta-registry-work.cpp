// The registry's part that the loader and the main loop work off.
#include "delta-registry.h"

#include <algorithm>

//
// the loader
//

// The first job of the queue, if it may run. Jobs that never can are finished on the way.
bool server_delta_registry::next_load(work & next) {
    while (!is_asleep && !at_work.to_load && !queue.empty()) {
        server_delta_entry & entry = entries.at(queue.front());
        if (entry.current && !entry.job->is_reload) { // was told to leave, for a load that did not come about
            entry.is_leaving = false;
            finish(entry, 0, "");
            continue;
        }
        if (entry.job->n_bytes == 0) { // once: a load that waits for room comes here again and again
            entry.job->n_bytes = limits.bytes_needed(entry.job->path);
        }
        std::string err;
        switch (make_room(entry, err)) {
            case room::never:
                SRV_WRN("%s\n", err.c_str());
                entry.reason = err;
                finish(entry, ERROR_TYPE_UNAVAILABLE, err);
                continue;
            case room::later: return false;
            case room::yes:
                next.to_load     = entry.job;
                next.name        = entry.name;
                next.must_verify = !(entry.verified == server_delta_stamp::of(entry.job->path));
                at_work          = next;
                is_reading       = true;
                return true;
        }
    }
    return false;
}

bool server_delta_registry::next_work(work & next) {
    lock_t lock(mutex);
    while (!is_ended) {
        next = {};
        if (!is_asleep && !dead.empty()) {
            freeing = next.to_free = dead.back();
            dead.pop_back();
            return true;
        }
        if (next_load(next)) {
            return true;
        }
        // the main loop, which may be idle, checks what was loaded and unbinds what no request holds any more
        const bool any_unheld = std::any_of(leaving.begin(), leaving.end(), [](const auto & delta) { return delta->n_uses == 0; });
        if (!is_asleep && !is_woken && (unchecked || any_unheld)) {
            is_woken = next.wants_main_loop = true;
            return true;
        }
        changed.wait(lock);
    }
    return false;
}

void server_delta_registry::freed() {
    const lock_t lock(mutex);
    freeing.reset();
    forget_drained();
    changed.notify_all();
}

// Whether a failed load leaves nothing to serve: after that of a file that was to replace another, the other one can be loaded again.
static bool is_own_file(const server_delta_entry & entry, const server_delta_job & job) {
    return entry.current == nullptr && job.path == entry.path;
}

void server_delta_registry::loaded(const work & done, const std::shared_ptr<server_delta> & delta, const std::string & err) {
    const lock_t         lock(mutex);
    server_delta_entry * entry = find(done.name);
    is_reading                 = false;
    if (delta) {
        unchecked = delta;
        is_work   = true;
    } else {
        counts[done.name].n_failures++;
        at_work = {};
        if (entry != nullptr && entry->job == done.to_load) {
            entry->reason    = err;
            entry->is_broken = is_own_file(*entry, *done.to_load);
            finish(*entry, ERROR_TYPE_SERVER, "delta '" + done.name + "' cannot be served: " + err);
        }
    }
    changed.notify_all();
}

void server_delta_registry::end() {
    const lock_t lock(mutex);
    is_ended    = true;
    is_stopping = true;
    changed.notify_all();
}

//
// the main loop
//

void server_delta_registry::update_is_work() {
    is_work = unchecked || !leaving.empty();
    if (!is_work) {
        is_woken = false; // update() does not look any more, so a call on its way to the main loop is lost
    }
}

std::shared_ptr<server_delta> server_delta_registry::take_unchecked() {
    const lock_t lock(mutex);
    is_woken   = false;
    auto delta = std::move(unchecked);
    unchecked.reset();
    update_is_work();
    return delta;
}

void server_delta_registry::checked(const std::shared_ptr<server_delta> & delta, const std::string & err) {
    const lock_t         lock(mutex);
    const work           done  = std::move(at_work);
    server_delta_entry * entry = find(delta->name);
    at_work                    = {};
    if (entry == nullptr || entry->job != done.to_load) { // unloaded meanwhile
        dead.push_back(delta);
    } else if (!err.empty()) {
        dead.push_back(delta);
        counts[delta->name].n_failures++;
        entry->reason    = err;
        entry->is_broken = is_own_file(*entry, *done.to_load);
        finish(*entry, ERROR_TYPE_SERVER, "delta '" + delta->name + "' cannot be served: " + err);
    } else {
        take_over(delta);
        entry->verified = delta->stamp;
        finish(*entry, 0, "");
    }
    changed.notify_all();
}

// Requests get this delta from here on.
void server_delta_registry::take_over(const std::shared_ptr<server_delta> & delta) {
    server_delta_entry & entry = entries.at(delta->name);
    if (entry.current) {
        retire(entry);
    }
    entry.current    = delta;
    entry.path       = delta->path;
    entry.n_bytes    = delta->stamp.n_bytes;
    entry.hash       = delta->hash;
    entry.ratio      = delta->ratio;
    entry.n_applied  = delta->applied.n_applied;
    entry.is_leaving = false;
    entry.is_broken  = false;
    entry.reason.clear();
    counts[entry.name].n_loads++;
    counts[entry.name].load_s += delta->load_ms / 1000.0;
}

void server_delta_registry::put(const std::shared_ptr<server_delta> & delta) {
    const lock_t lock(mutex);
    take_over(delta);
}

std::vector<std::shared_ptr<server_delta>> server_delta_registry::retired() {
    const lock_t lock(mutex);
    return leaving;
}

void server_delta_registry::unbound(const std::shared_ptr<server_delta> & delta) {
    const lock_t lock(mutex);
    if (delta->n_uses == 0) {
        leaving.erase(std::remove(leaving.begin(), leaving.end(), delta), leaving.end());
        dead.push_back(delta);
        update_is_work();
        changed.notify_all();
    }
}

void server_delta_registry::sleep() {
    lock_t lock(mutex);
    is_asleep = true;
    changed.wait(lock, [this] { return !is_reading && !freeing; });

    std::vector<std::shared_ptr<server_delta>> all = std::move(leaving);
    all.insert(all.end(), dead.begin(), dead.end());
    leaving.clear();
    dead.clear();
    if (unchecked) { // its job stays in the queue
        all.push_back(std::move(unchecked));
    }
    unchecked.reset();
    at_work  = {};
    is_woken = false;
    for (auto & [name, entry] : entries) {
        if (entry.current) {
            all.push_back(std::move(entry.current));
            entry.current.reset();
            entry.is_leaving = false;
            ask(entry, entry.path, false);
        }
    }
    for (const auto & delta : all) {
        delta->free_handle();
    }
    forget_drained();
    update_is_work();
    changed.notify_all();
}

void server_delta_registry::wake() {
    const lock_t lock(mutex);
    is_asleep = false;
    changed.notify_all();
}
