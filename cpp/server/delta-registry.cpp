#include "delta-registry.h"

#include <algorithm>
#include <chrono>
#include <ctime>

// How often a waiting request looks whether its client is still there.
static const auto POLL = std::chrono::milliseconds(200);

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
    const lock_t lock(mutex);
    delta->n_uses--;
    const auto entry = find(delta->name);
    if (entry != nullptr) {
        retire_if_left(*entry);
    }
    changed.notify_all();
}

//
// names
//

server_delta_entry * server_delta_registry::find(const std::string & name) {
    const auto it = entries.find(name);
    return it == entries.end() ? nullptr : &it->second;
}

bool server_delta_registry::has(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   it = entries.find(name);
    return it != entries.end() && !it->second.is_draining;
}

bool server_delta_registry::is_loaded(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   it = entries.find(name);
    return it != entries.end() && !it->second.is_draining && it->second.current;
}

std::string server_delta_registry::path_of(const std::string & name) const {
    const lock_t lock(mutex);
    const auto   it = entries.find(name);
    return it == entries.end() ? "" : it->second.path;
}

void server_delta_registry::pin(const std::string & name) {
    const lock_t lock(mutex);
    const auto   entry = find(name);
    if (entry != nullptr) {
        entry->is_pinned = true;
    }
}

bool server_delta_registry::add(const std::string & name, const std::string & path, bool is_pinned) {
    const lock_t lock(mutex);
    if (find(name) != nullptr) {
        return false;
    }
    auto & entry    = entries[name];
    entry.name      = name;
    entry.path      = path;
    entry.n_bytes   = server_delta_stamp::of(path).n_bytes;
    entry.is_pinned = is_pinned;
    entry.order     = n_added++;
    counts[name];
    return true;
}

int server_delta_registry::n_running(const std::string & name) const {
    int        n  = 0;
    const auto it = entries.find(name);
    if (it != entries.end() && it->second.current) {
        n += it->second.current->n_uses;
    }
    for (const auto & delta : leaving) {
        n += delta->name == name ? delta->n_uses : 0;
    }
    return n;
}

std::vector<server_delta_registry::row> server_delta_registry::rows() const {
    const lock_t     lock(mutex);
    std::vector<row> rows;
    for (const auto & [name, entry] : entries) {
        row        r{ entry, counts.at(name), n_running(name), 0, {} };
        const auto add = [&](const std::shared_ptr<server_delta> & delta) {
            if (delta && delta->name == name) {
                r.n_resident += delta->n_bytes;
                for (const auto & [memory, n_bytes] : delta->memory) {
                    r.memory[memory] += n_bytes;
                }
            }
        };
        add(entry.current);
        std::for_each(leaving.begin(), leaving.end(), add);
        std::for_each(dead.begin(), dead.end(), add);
        add(freeing);
        rows.push_back(std::move(r));
    }
    std::sort(rows.begin(), rows.end(), [](const row & a, const row & b) { return a.entry.order < b.entry.order; });
    return rows;
}

std::map<std::string, server_delta_counts> server_delta_registry::all_counts() const {
    const lock_t lock(mutex);
    return counts;
}

void server_delta_registry::count(const server_delta & delta, uint64_t n_prompt, uint64_t n_generated) {
    const lock_t lock(mutex);
    counts[delta.name].n_prompt += n_prompt;
    counts[delta.name].n_generated += n_generated;
}

void server_delta_registry::count_request(const server_delta & delta) {
    const lock_t lock(mutex);
    counts[delta.name].n_requests++;
}

//
// requests
//

// Sleeps until something changed; throws when the client or the server is gone.
void server_delta_registry::pause(lock_t & lock, const server_should_stop & should_stop) {
    changed.wait_for(lock, POLL);
    if (is_stopping) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the server is shutting down");
    }
    lock.unlock(); // both may wait
    const bool is_gone = should_stop && should_stop();
    if (!is_gone && keep_awake) {
        keep_awake();
    }
    lock.lock();
    if (is_gone) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the client has gone");
    }
}

void server_delta_registry::wait_for(lock_t & lock, const server_delta_job & job, const server_should_stop & should_stop) {
    while (!job.is_done) {
        pause(lock, should_stop);
    }
    if (!job.error.empty()) {
        throw server_delta_error(job.error_type, job.error);
    }
}

// A request may start if nobody waits before it and its delta runs already, or one more may.
bool server_delta_registry::may_start(const server_delta_entry & entry, uint64_t ticket) const {
    if (limits.n_active_max == 0) {
        return true;
    }
    if (!line.empty() && *line.begin() < ticket) {
        return false;
    }
    size_t n_active = 0;
    for (const auto & [name, other] : entries) {
        n_active += other.current && other.current->n_uses > 0;
    }
    for (const auto & delta : leaving) {
        n_active += delta->n_uses > 0;
    }
    return entry.current->n_uses > 0 || n_active < limits.n_active_max;
}

// One request on its way to a delta: its place in the line, and what it waits for. Made, used and destroyed under the registry's lock.
class server_delta_registry::claim {
public:
    claim(server_delta_registry & registry, const std::string & name) : registry(registry), name(name), ticket(registry.n_tickets++) {}

    ~claim() { drop(); }

    claim(const claim &)             = delete;
    claim & operator=(const claim &) = delete;

    // Whether the delta that is loaded stays for this request.
    bool is_on(const server_delta_entry & entry) const { return is_entitled && order == entry.order; }

    // Waits in line for a turn.
    void line_up(server_delta_entry & entry) {
        if (!is_on(entry)) {
            drop();
            entry.n_entitled++;
            is_entitled = true;
            order       = entry.order;
        }
        registry.line.insert(ticket);
    }

    // Waits for a load, out of line: whom it waits for may be behind it there. The ticket keeps its place.
    void wait_for(const server_delta_entry & entry, const std::shared_ptr<server_delta_job> & wanted) {
        drop();
        job   = wanted;
        order = entry.order;
        job->n_waiting++;
    }

    // The load is over.
    void loaded() {
        is_entitled = job->error.empty();
        job.reset();
    }

    void drop() {
        if (job && !job->is_done) {
            job->n_waiting--;
        }
        const auto entry = registry.find(name);
        const bool is_up = job ? job->is_done && job->error.empty() : is_entitled;
        if (is_up && entry != nullptr && entry->order == order) {
            entry->n_entitled--;
            registry.retire_if_left(*entry);
        }
        if (registry.line.erase(ticket) > 0) {
            registry.changed.notify_all();
        }
        job.reset();
        is_entitled = false;
    }

    server_delta_registry & registry;
    const std::string       name;
    const uint64_t          ticket;

private:
    std::shared_ptr<server_delta_job> job;                 // waits for it
    bool                              is_entitled = false; // is counted in the entry's n_entitled
    uint64_t                          order       = 0;     // of the entry: the name may be unloaded and come back meanwhile
};

std::shared_ptr<const server_delta_use> server_delta_registry::acquire(const std::string & name, const server_should_stop & should_stop) {
    lock_t lock(mutex);
    claim  mine(*this, name);

    while (true) {
        server_delta_entry * entry = find(name);
        if (entry == nullptr || entry->is_draining) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "model '" + name + "' was unloaded");
        }
        if (entry->current && (!entry->is_leaving || mine.is_on(*entry))) {
            if (may_start(*entry, mine.ticket)) {
                entry->current->n_uses++;
                entry->used_us = ggml_time_us();
                entry->used_s  = std::time(nullptr);
                return std::make_shared<const server_delta_use>(shared_from_this(), entry->current);
            }
            mine.line_up(*entry);
            pause(lock, should_stop);
        } else if (entry->is_broken) {
            throw server_delta_error(ERROR_TYPE_SERVER, "delta '" + name + "' cannot be served: " + entry->reason);
        } else {
            const std::string path = entry->path;
            const auto        job  = ask(*entry, path, false);
            mine.wait_for(*entry, job);
            while (!job->is_done) {
                pause(lock, should_stop);
            }
            if (!job->error.empty() && job->path == path) { // a failed reload is not this request's: what was there before is loaded then
                throw server_delta_error(job->error_type, job->error);
            }
            mine.loaded();
        }
    }
}

//
// loading and unloading
//

// The entry's job, which is made if it has none.
std::shared_ptr<server_delta_job> server_delta_registry::ask(server_delta_entry & entry, const std::string & path, bool is_reload) {
    if (!entry.job) {
        entry.job            = std::make_shared<server_delta_job>();
        entry.job->path      = path;
        entry.job->is_reload = is_reload;
        queue.push_back(entry.name);
        changed.notify_all();
    }
    return entry.job;
}

// The job is over, well or not; its waiters go on.
void server_delta_registry::finish(server_delta_entry & entry, int error_type, const std::string & error) {
    entry.job->is_done    = true;
    entry.job->error_type = error_type;
    entry.job->error      = error;
    if (error.empty()) {
        entry.n_entitled += entry.job->n_waiting;
    }
    entry.job.reset();
    queue.erase(std::remove(queue.begin(), queue.end(), entry.name), queue.end());
    changed.notify_all();
}

void server_delta_registry::load(const std::string & name, const std::string & path, bool is_reload,
                                 const server_should_stop & should_stop) {
    lock_t lock(mutex);
    while (true) {
        server_delta_entry * entry = find(name);
        if (entry == nullptr || entry->is_draining) {
            throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
        }
        if (entry->job && (is_reload || entry->job->path != path)) {
            pause(lock, should_stop); // another load of this name comes first
            continue;
        }
        if (entry->current && !is_reload && !entry->is_leaving) {
            return;
        }
        entry->is_broken = false;
        const auto job   = ask(*entry, path, is_reload);
        wait_for(lock, *job, should_stop);
        return;
    }
}

void server_delta_registry::unload(const std::string & name, const server_should_stop & should_stop) {
    lock_t               lock(mutex);
    server_delta_entry * entry = find(name);
    if (entry == nullptr || entry->is_draining) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "delta '" + name + "' does not exist");
    }
    SRV_INF("delta '%s': unloading, %d requests running\n", name.c_str(), n_running(name));
    entry->is_draining = true;
    if (entry->job) {
        finish(*entry, ERROR_TYPE_NOT_FOUND, "delta '" + name + "' was unloaded");
    }
    if (entry->current) {
        retire(*entry);
    }
    forget_drained();
    changed.notify_all();
    while (find(name) != nullptr && find(name)->is_draining) {
        pause(lock, should_stop);
    }
}

// No request gets the entry's delta from here on. The main loop unbinds it, then the loader frees it.
void server_delta_registry::retire(server_delta_entry & entry) {
    leaving.push_back(std::move(entry.current));
    entry.current.reset();
    entry.is_leaving = false;
    is_work          = true;
    changed.notify_all();
}

// Retires what was told to leave once nobody uses it.
void server_delta_registry::retire_if_left(server_delta_entry & entry) {
    if (entry.is_leaving && entry.current && !entry.is_in_use()) {
        retire(entry);
    }
}

// Drops the names that were unloaded and whose last file is freed.
void server_delta_registry::forget_drained() {
    for (auto it = entries.begin(); it != entries.end();) {
        const auto is_its  = [&](const auto & delta) { return delta->name == it->first; };
        const bool is_gone = it->second.is_draining && std::none_of(leaving.begin(), leaving.end(), is_its) &&
                             std::none_of(dead.begin(), dead.end(), is_its) && !(freeing && is_its(freeing));
        it                 = is_gone ? entries.erase(it) : std::next(it);
    }
}

//
// memory
//

size_t server_delta_registry::resident_bytes(const std::string & except) const {
    size_t n_bytes = 0;
    for (const auto & [name, entry] : entries) {
        n_bytes += entry.current && name != except ? entry.current->n_bytes : 0;
    }
    for (const auto * list : { &leaving, &dead }) {
        for (const auto & delta : *list) {
            n_bytes += delta->name != except ? delta->n_bytes : 0;
        }
    }
    return n_bytes + (freeing && freeing->name != except ? freeing->n_bytes : 0);
}

size_t server_delta_registry::n_resident() const {
    const lock_t lock(mutex);
    return resident_bytes("");
}

// Whether the entry's job fits. If it will, when others have gone, they are sent: first the idle ones, least recently used first, then
// those in use, which then get no more requests. What the entry itself has loaded does not count: a reload has both files in memory for a
// while.
server_delta_registry::room server_delta_registry::make_room(const server_delta_entry & entry, std::string & err) {
    const size_t wanted = entry.job->n_bytes;
    if (limits.n_bytes_max == 0 || resident_bytes(entry.name) + wanted <= limits.n_bytes_max) {
        return room::yes;
    }
    std::vector<server_delta_entry *> victims;
    size_t                            n_pinned = 0;
    size_t                            n_kept   = 0; // bytes that no one was told to leave
    for (auto & [name, other] : entries) {
        if (!other.current || &other == &entry) {
            continue;
        }
        n_pinned += other.is_pinned ? other.current->n_bytes : 0;
        n_kept += other.is_leaving ? 0 : other.current->n_bytes;
        if (!other.is_pinned && !other.is_leaving) {
            victims.push_back(&other);
        }
    }
    if (n_pinned + wanted > limits.n_bytes_max) {
        err = "delta '" + entry.name + "' does not fit: it takes " + std::to_string(wanted) + " bytes, --delta-memory allows " +
              std::to_string(limits.n_bytes_max) + ", of which pinned deltas have " + std::to_string(n_pinned);
        return room::never;
    }
    std::sort(victims.begin(), victims.end(), [](const auto * a, const auto * b) {
        return std::make_pair(a->is_in_use(), a->used_us) < std::make_pair(b->is_in_use(), b->used_us);
    });
    for (auto * victim : victims) {
        if (n_kept + wanted <= limits.n_bytes_max) {
            break;
        }
        n_kept -= victim->current->n_bytes;
        SRV_INF("delta '%s': goes to make room for '%s', %zu bytes%s\n", victim->name.c_str(), entry.name.c_str(), victim->current->n_bytes,
                victim->is_in_use() ? ", after its requests" : "");
        counts[victim->name].n_evictions++;
        victim->is_leaving = true;
        retire_if_left(*victim);
    }
    return room::later;
}
