#include "delta-registry.h"

#include <algorithm>
#include <chrono>
#include <ctime>

// How often a waiting request looks whether its client is still there.
static const auto POLL = std::chrono::milliseconds(200);

// A stretch under the lock in which the parts may change; all who wait look again when it ends.
class server_delta_registry::change {
public:
    explicit change(server_delta_registry & registry) : registry(registry), lock(registry.mutex) {}

    ~change() { tell(); }

    change(const change &)             = delete;
    change & operator=(const change &) = delete;

    void tell() {
        registry.is_work = registry.jobs.has_unchecked() || !registry.memory.retired().empty();
        if (!registry.is_work) {
            registry.is_woken = false; // update() does not look any more, so a call on its way to the main loop is lost
        }
        registry.changed.notify_all();
    }

    server_delta_registry &      registry;
    std::unique_lock<std::mutex> lock;
};

using lock_t = std::lock_guard<std::mutex>;

//
// holds
//

server_delta_use::server_delta_use(std::shared_ptr<server_delta_registry> registry, std::shared_ptr<server_delta> delta) :
    delta(std::move(delta)), registry(std::move(registry)) {}

server_delta_use::~server_delta_use() {
    registry->release(delta);
}

void server_delta_use::count(uint64_t n_prompt, uint64_t n_generated) const {
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

bool server_delta_registry::add(const std::string & name, const std::string & path, bool is_pinned) {
    const lock_t lock(mutex);
    return names.add(name, path, server_delta_stamp::of(path).n_bytes, is_pinned);
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

void server_delta_registry::pause(change & mine, const server_should_stop & should_stop) {
    mine.tell();
    changed.wait_for(mine.lock, POLL);
    if (is_stopping) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the server is shutting down");
    }
    mine.lock.unlock(); // both may wait
    const bool is_gone = should_stop && should_stop();
    if (!is_gone && keep_awake) {
        keep_awake();
    }
    mine.lock.lock();
    if (is_gone) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the client has gone");
    }
}

void server_delta_registry::wait_for(change & mine, const server_delta_job & job, const server_should_stop & should_stop) {
    while (!job.is_done) {
        pause(mine, should_stop);
    }
    if (!job.error.empty()) {
        throw server_delta_error(job.error_type, job.error);
    }
}

std::shared_ptr<const server_delta_use> server_delta_registry::acquire(const std::string & name, const server_should_stop & should_stop) {
    change             mine(*this);
    server_delta_claim claim(name, names, memory, turns);

    while (true) {
        server_delta_entry * entry = names.find_open(name);
        if (entry == nullptr) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' was unloaded");
        }
        if (entry->current && (!entry->is_leaving || claim.is_on(*entry))) {
            if (turns.may_start(*entry, claim.ticket, memory.n_active(names))) {
                entry->current->n_uses++;
                entry->used_us = ggml_time_us();
                entry->used_s  = std::time(nullptr);
                return std::make_shared<const server_delta_use>(shared_from_this(), entry->current);
            }
            claim.line_up(*entry);
            pause(mine, should_stop);
        } else if (entry->is_broken) {
            throw server_delta_error(ERROR_TYPE_SERVER, "delta '" + name + "' cannot be served: " + entry->reason);
        } else {
            wait_for_load(mine, claim, *entry, should_stop);
        }
    }
}

void server_delta_registry::wait_for_load(change & mine, server_delta_claim & claim, server_delta_entry & entry,
                                          const server_should_stop & should_stop) {
    const std::string path = entry.path;
    const auto        job  = jobs.ask(entry, path, false);
    claim.wait_for(entry, job);
    while (!job->is_done) {
        pause(mine, should_stop);
    }
    if (!job->error.empty() && job->path == path) { // a failed reload is not this request's: what was there before is loaded then
        throw server_delta_error(job->error_type, job->error);
    }
    claim.loaded();
}

void server_delta_registry::load(const std::string & name, const std::string & path, bool is_reload,
                                 const server_should_stop & should_stop) {
    change mine(*this);
    while (true) {
        server_delta_entry * entry = names.find_open(name);
        if (entry == nullptr) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
        }
        if (entry->job && (is_reload || entry->job->path != path)) {
            pause(mine, should_stop); // another load of this name comes first
            continue;
        }
        if (entry->current && !is_reload && !entry->is_leaving) {
            return;
        }
        entry->is_broken = false;
        const auto job   = jobs.ask(*entry, path, is_reload);
        wait_for(mine, *job, should_stop);
        return;
    }
}

void server_delta_registry::unload(const std::string & name, const server_should_stop & should_stop) {
    change               mine(*this);
    server_delta_entry * entry = names.find_open(name);
    if (entry == nullptr) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' does not exist");
    }
    SRV_INF("delta '%s': unloading, %d requests running\n", name.c_str(), n_running(*entry));
    entry->is_draining = true;
    if (entry->job) {
        jobs.finish(*entry, ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
    }
    if (entry->current) {
        memory.retire(*entry);
    }
    forget_drained();
    while ((entry = names.find(name)) != nullptr && entry->is_draining) {
        pause(mine, should_stop);
    }
}

// Drops the names that were unloaded and whose last file is freed.
void server_delta_registry::forget_drained() {
    for (const auto * entry : names.in_order()) {
        if (entry->is_draining && memory.old_files(entry->name).empty()) {
            names.forget(std::string(entry->name));
        }
    }
}

//
// the loader
//

// The first job that waits, if it may run. Jobs that never can are finished on the way.
bool server_delta_registry::next_load(server_delta_work & next) {
    while (!is_asleep && !jobs.is_at_work() && !jobs.waiting().empty()) {
        server_delta_entry & entry = *names.find(jobs.waiting().front());
        if (entry.current && !entry.job->is_reload) { // was told to leave, for a load that did not come about
            entry.is_leaving = false;
            jobs.finish(entry, 0, "");
            continue;
        }
        if (entry.job->n_bytes == 0) { // once: a load that waits for room comes here again and again
            entry.job->n_bytes = limits.bytes_needed(entry.job->path);
        }
        std::string err;
        switch (memory.make_room(names, entry, err)) {
            case server_delta_memory::room::never:
                SRV_WRN("%s\n", err.c_str());
                entry.reason = err;
                jobs.finish(entry, ERROR_TYPE_UNAVAILABLE, err);
                continue;
            case server_delta_memory::room::later: return false;
            case server_delta_memory::room::yes:
                next.to_load     = entry.job;
                next.name        = entry.name;
                next.must_verify = !(entry.verified == server_delta_stamp::of(entry.job->path));
                jobs.start(next);
                return true;
        }
    }
    return false;
}

bool server_delta_registry::next_work(server_delta_work & next) {
    change mine(*this);
    while (!is_ended) {
        next         = {};
        next.to_free = is_asleep ? nullptr : memory.next_to_free();
        if (next.to_free || next_load(next)) {
            return true;
        }
        mine.tell(); // of jobs that were finished without a load
        // the main loop, which may be idle, checks what was loaded and unbinds what no request holds any more
        if (!is_asleep && !is_woken && (jobs.has_unchecked() || memory.any_unheld())) {
            is_woken = next.wants_main_loop = true;
            return true;
        }
        changed.wait(mine.lock);
    }
    return false;
}

void server_delta_registry::freed() {
    const change mine(*this);
    memory.freed();
    forget_drained();
}

// The end of a load that failed. After that of a file that was to replace another, the other one can be loaded again.
void server_delta_registry::fail(const server_delta_work & done, const std::string & err) {
    const auto entry = names.find(done.name);
    entry->reason    = err;
    entry->is_broken = entry->current == nullptr && done.to_load->path == entry->path;
    jobs.finish(*entry, ERROR_TYPE_SERVER, "delta '" + done.name + "' cannot be served: " + err);
}

void server_delta_registry::loaded(const server_delta_work & done, const std::shared_ptr<server_delta> & delta, const std::string & err) {
    const change mine(*this);
    jobs.read(delta);
    if (delta) {
        return;
    }
    jobs.end();
    names.counts(done.name).n_failures++;
    const auto entry = names.find(done.name);
    if (entry != nullptr && entry->job == done.to_load) { // else it was unloaded meanwhile
        fail(done, err);
    }
}

void server_delta_registry::end() {
    const change mine(*this);
    is_ended    = true;
    is_stopping = true;
}

//
// the main loop
//

std::shared_ptr<server_delta> server_delta_registry::take_unchecked() {
    const change mine(*this);
    is_woken = false;
    return jobs.take_unchecked();
}

void server_delta_registry::checked(const std::shared_ptr<server_delta> & delta, const std::string & err) {
    const change mine(*this);
    const auto   done  = jobs.end();
    const auto   entry = names.find(delta->name);
    if (entry == nullptr || entry->job != done.to_load) { // unloaded meanwhile
        memory.discard(delta);
    } else if (!err.empty()) {
        memory.discard(delta);
        names.counts(delta->name).n_failures++;
        fail(done, err);
    } else {
        take_over(delta);
        entry->verified = delta->stamp;
        jobs.finish(*entry, 0, "");
    }
}

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
    entry.ratio      = delta->ratio;
    entry.n_applied  = delta->applied.n_applied;
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
    const lock_t lock(mutex);
    return memory.retired();
}

void server_delta_registry::unbound(const std::shared_ptr<server_delta> & delta) {
    const change mine(*this);
    memory.unbound(delta);
}

void server_delta_registry::sleep() {
    change mine(*this);
    is_asleep = true;
    changed.wait(mine.lock, [this] { return !jobs.is_reading() && !memory.is_freeing(); });

    for (auto & [name, entry] : names.all()) {
        if (entry.current) {
            jobs.ask(entry, entry.path, false);
        }
    }
    auto all = memory.take_all(names);
    if (jobs.has_unchecked()) { // its job stays in the queue
        all.push_back(jobs.take_unchecked());
    }
    jobs.end();
    is_woken = false;
    for (const auto & delta : all) {
        delta->free_handle();
    }
    forget_drained();
}

void server_delta_registry::wake() {
    const change mine(*this);
    is_asleep = false;
}
