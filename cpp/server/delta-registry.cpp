#include "delta-change.h"
#include "delta-registry.h"

#include <algorithm>
#include <chrono>
#include <ctime>

// How often the watch asks whether the clients of waiting requests are still there.
static const auto WATCH_PERIOD = std::chrono::milliseconds(200);

using lock_t = std::lock_guard<std::mutex>;

//
// holds
//

server_delta_hold::server_delta_hold(std::shared_ptr<server_delta_registry> registry, std::shared_ptr<server_delta> delta) :
    delta(std::move(delta)), registry(std::move(registry)) {}

server_delta_hold::~server_delta_hold() {
    registry->release(delta);
}

void server_delta_hold::count(uint64_t n_prompt, uint64_t n_generated) const {
    registry->count(*delta, n_prompt, n_generated);
}

void server_delta_registry::release(const std::shared_ptr<server_delta> & delta) {
    const change mine(*this);
    delta->n_uses--;
    const auto entry = names.find(delta->name);
    if (entry != nullptr) {
        memory.retire_if_left(*entry);
    }
}

//
// names
//

bool server_delta_registry::has(const std::string & name) const {
    const lock_t lock(mutex);
    return names.find_open(name) != nullptr;
}

bool server_delta_registry::is_broken(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   entry = names.find_open(name);
    return entry != nullptr && entry->is_broken;
}

bool server_delta_registry::is_loaded(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   entry = names.find_open(name);
    return entry != nullptr && entry->current;
}

std::string server_delta_registry::path_of(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   entry = names.find(name);
    return entry == nullptr ? "" : entry->path;
}

void server_delta_registry::pin(const std::string & name) {
    const lock_t lock(mutex);
    const auto   entry = names.find(name);
    if (entry != nullptr) {
        entry->is_pinned = true;
    }
}

bool server_delta_registry::add(const std::string & name, const std::string & path, size_t n_bytes, bool is_pinned) {
    const lock_t lock(mutex);
    return names.add(name, path, n_bytes, is_pinned);
}

bool server_delta_registry::found(const std::string & name, const server_delta_stamp & stamp, bool is_pinned) {
    const lock_t lock(mutex);
    const bool   is_new = names.add(name, stamp.path, stamp.n_bytes, is_pinned);
    const auto   entry  = names.find(name);
    entry->is_found     = entry->is_found || is_new;
    entry->is_lost      = entry->is_lost && entry->path != stamp.path;
    return entry->path == stamp.path;
}

void server_delta_registry::lost(const std::vector<std::string> & paths) {
    const change mine(*this);
    for (auto & [name, entry] : names.all()) {
        entry.is_lost = entry.is_lost || (entry.is_found && std::find(paths.begin(), paths.end(), entry.path) != paths.end());
    }
    forget_unused();
}

std::vector<server_delta_stamp> server_delta_registry::broken() const {
    const lock_t                    lock(mutex);
    std::vector<server_delta_stamp> stamps;
    for (const auto & [name, entry] : names.all()) {
        if (entry.is_broken) {
            stamps.push_back(entry.broken);
        }
    }
    return stamps;
}

void server_delta_registry::changed(const std::vector<server_delta_stamp> & before) {
    const lock_t lock(mutex);
    for (auto & [name, entry] : names.all()) {
        entry.is_broken = entry.is_broken && std::find(before.begin(), before.end(), entry.broken) == before.end();
    }
}

int server_delta_registry::n_running(const server_delta_entry & entry) const {
    int n = entry.current ? entry.current->n_uses : 0;
    for (const auto * delta : memory.old_files(entry.name)) {
        n += delta->n_uses;
    }
    return n;
}

std::vector<server_delta_registry::row> server_delta_registry::rows() const {
    const lock_t     lock(mutex);
    std::vector<row> rows;
    for (const auto * entry : names.in_order()) {
        row  r{ *entry, names.all_counts().at(entry->name), n_running(*entry), 0, {} };
        auto files = memory.old_files(entry->name);
        if (entry->current) {
            files.push_back(entry->current.get());
        }
        for (const auto * delta : files) {
            r.n_resident += delta->n_bytes;
            for (const auto & [memory, n_bytes] : delta->memory) {
                r.memory[memory] += n_bytes;
            }
        }
        rows.push_back(std::move(r));
    }
    return rows;
}

std::map<std::string, server_delta_counts> server_delta_registry::all_counts() const {
    const lock_t lock(mutex);
    return names.all_counts();
}

size_t server_delta_registry::n_resident() const {
    const lock_t lock(mutex);
    return memory.n_bytes(names);
}

size_t server_delta_registry::n_waiting() const {
    const lock_t lock(mutex);
    return waiting.n();
}

std::vector<std::string> server_delta_registry::waiting_requests() const {
    const lock_t             lock(mutex);
    std::vector<std::string> names;
    for (const auto & waiter : waiting.all()) {
        if (!waiter->is_admin) {
            names.push_back(waiter->name);
        }
    }
    return names;
}

void server_delta_registry::count(const server_delta & delta, uint64_t n_prompt, uint64_t n_generated) {
    const lock_t lock(mutex);
    names.counts(delta.name).n_prompt += n_prompt;
    names.counts(delta.name).n_generated += n_generated;
}

void server_delta_registry::count_request(const server_delta & delta) {
    const lock_t lock(mutex);
    names.counts(delta.name).n_requests++;
}

//
// requests
//

// Turns are by arrival, so one request only can be the next.
void server_delta_registry::call_first_in_line() {
    const auto claim = turns.first();
    const auto entry = claim == nullptr ? nullptr : names.find_open(claim->waiter.name);
    if (entry != nullptr && entry->current && turns.may_start(*entry, claim->ticket, memory.n_active(names))) {
        server_delta_waiting::wake(claim->waiter);
    }
}

std::shared_ptr<const server_delta_hold> server_delta_registry::hold(server_delta_entry & entry) {
    entry.current->n_uses++;
    entry.needed_us = ggml_time_us();
    entry.used_s    = std::time(nullptr);
    return std::make_shared<const server_delta_hold>(shared_from_this(), entry.current);
}

std::shared_ptr<const server_delta_hold> server_delta_registry::acquire(const std::string & name, const server_should_stop & should_stop) {
    visit              visit(*this, name, should_stop, /*is_admin =*/false);
    change             mine(*this);
    server_delta_claim claim(*visit.waiter, names, memory, turns);

    while (true) {
        server_delta_entry * entry = names.find_open(name);
        if (entry == nullptr) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' was unloaded");
        }
        if (entry->current && (!entry->is_leaving || claim.is_on(*entry))) {
            if (turns.may_start(*entry, claim.ticket, memory.n_active(names))) {
                return hold(*entry);
            }
            claim.line_up(*entry);
            visit.pause(mine);
        } else if (entry->is_broken) {
            throw server_delta_error(ERROR_TYPE_SERVER, "delta '" + name + "' cannot be served: " + entry->reason);
        } else {
            wait_for_load(mine, visit, claim, *entry);
        }
    }
}

void server_delta_registry::wait_for_load(change & mine, visit & visit, server_delta_claim & claim, server_delta_entry & entry) {
    const std::string path = entry.path;
    const auto        job  = jobs.ask(entry, path, false);
    claim.wait_for(entry, job);
    while (!job->is_done) {
        visit.pause(mine);
    }
    // A failed reload is not this request's: what was there before is loaded then.
    if (!job->error.empty() && job->path == path) {
        throw server_delta_error(job->error_type, job->error);
    }
    claim.loaded();
}

// The entry's job is over; those that wait for it look again.
void server_delta_registry::finish(server_delta_entry & entry, int error_type, const std::string & error) {
    jobs.finish(entry, error_type, error);
    waiting.wake(entry.name);
}

// Throws unless the name's content hash is `if_hash`, or that is empty. A name has one job at a time, so what is so when a job is made is
// so until the job's file takes its place.
static void check_hash(const server_delta_entry & entry, const std::string & if_hash) {
    if (!if_hash.empty() && entry.hash != if_hash) {
        throw server_delta_error(SERVER_DELTA_ERROR_CONDITION,
                                 "delta '" + entry.name + "' has " +
                                     (entry.hash.empty() ? "no content hash before its first load" : "the content hash " + entry.hash) +
                                     ", not \"if_content_hash\" " + if_hash + ": nothing was changed");
    }
}

void server_delta_registry::load(const std::string & name, const std::string & path, bool is_reload, const server_should_stop & should_stop,
                                 const std::string & if_hash) {
    visit  visit(*this, name, should_stop, /*is_admin =*/true);
    change mine(*this);
    visit.enter();
    while (true) {
        server_delta_entry * entry = names.find_open(name);
        if (entry == nullptr) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
        }
        if (entry->job && (is_reload || entry->job->path != path)) {
            visit.pause(mine); // Another load of this name comes first.
            continue;
        }
        check_hash(*entry, if_hash);
        if (entry->current && !is_reload && !entry->is_leaving) {
            entry->needed_us = ggml_time_us();
            return;
        }
        entry->is_broken = false;
        const auto job   = jobs.ask(*entry, path, is_reload);
        while (!job->is_done) {
            visit.pause(mine);
        }
        if (!job->error.empty()) {
            throw server_delta_error(job->error_type, job->error);
        }
        return;
    }
}

void server_delta_registry::unload(const std::string & name, const server_should_stop & should_stop, const std::string & if_hash) {
    visit  visit(*this, name, should_stop, /*is_admin =*/true);
    change mine(*this);
    visit.enter();
    server_delta_entry * entry = names.find_open(name);
    if (entry == nullptr) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' does not exist");
    }
    check_hash(*entry, if_hash);
    SRV_INF("delta '%s': unloading, %d requests running\n", name.c_str(), n_running(*entry));
    entry->is_draining = true;
    if (entry->job) {
        finish(*entry, ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
    }
    if (entry->current) {
        memory.retire(*entry);
    }
    waiting.wake(name);
    forget_unused();
    while ((entry = names.find(name)) != nullptr && entry->is_draining) {
        visit.pause(mine);
    }
}

//
// the watch
//

bool server_delta_registry::next_watch(std::vector<std::shared_ptr<server_delta_waiter>> & waiters) {
    std::unique_lock<std::mutex> lock(mutex);
    if (!waiters.empty()) {
        watch_called.wait_for(lock, WATCH_PERIOD, [this] { return is_ended; });
    }
    watch_called.wait(lock, [this] { return is_ended || waiting.n() > 0; });
    if (is_stopping) {
        waiting.wake_all();
    }
    waiters = waiting.all();
    return !is_ended;
}

void server_delta_registry::gone(server_delta_waiter & waiter) {
    const lock_t lock(mutex);
    waiter.is_gone = true;
    waiter.called.notify_one();
}

void server_delta_registry::end() {
    const change mine(*this);
    is_ended    = true;
    is_stopping = true;
    waiting.wake_all();
    watch_called.notify_all();
}
