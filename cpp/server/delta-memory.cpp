#include "delta-memory.h"

#include <algorithm>

//
// the way out
//

void server_delta_memory::retire(server_delta_entry & entry) {
    // What no request has cannot be bound any more, so where it is not, nothing waits for the main loop, which may be in a long step.
    const bool is_free = entry.current->n_uses == 0 && !entry.current->is_bound();
    (is_free ? dead : leaving).push_back(std::move(entry.current));
    entry.current.reset();
    entry.is_leaving = false;
}

void server_delta_memory::retire_if_left(server_delta_entry & entry) {
    if (entry.is_leaving && entry.current && !entry.is_in_use()) {
        retire(entry);
    }
}

void server_delta_memory::discard(const std::shared_ptr<server_delta> & delta) {
    dead.push_back(delta);
}

bool server_delta_memory::any_unheld() const {
    return std::any_of(leaving.begin(), leaving.end(), [](const auto & delta) { return delta->n_uses == 0; });
}

void server_delta_memory::unbound(const std::shared_ptr<server_delta> & delta) {
    if (delta->n_uses == 0) {
        leaving.erase(std::remove(leaving.begin(), leaving.end(), delta), leaving.end());
        dead.push_back(delta);
    }
}

std::shared_ptr<server_delta> server_delta_memory::next_to_free() {
    if (!dead.empty()) {
        freeing = dead.back();
        dead.pop_back();
    }
    return freeing;
}

std::vector<std::shared_ptr<server_delta>> server_delta_memory::take_all(server_delta_names & names) {
    std::vector<std::shared_ptr<server_delta>> all = std::move(leaving);
    all.insert(all.end(), dead.begin(), dead.end());
    leaving.clear();
    dead.clear();
    for (auto & [name, entry] : names.all()) {
        if (entry.current) {
            all.push_back(std::move(entry.current));
            entry.current.reset();
            entry.is_leaving = false;
        }
    }
    return all;
}

//
// what there is
//

std::vector<const server_delta *> server_delta_memory::old_files(const std::string & name) const {
    std::vector<const server_delta *> files;
    const auto                        add = [&](const std::shared_ptr<server_delta> & delta) {
        if (delta && delta->name == name) {
            files.push_back(delta.get());
        }
    };
    std::for_each(leaving.begin(), leaving.end(), add);
    std::for_each(dead.begin(), dead.end(), add);
    add(freeing);
    return files;
}

size_t server_delta_memory::n_active(const server_delta_names & names) const {
    size_t n = 0;
    for (const auto & [name, entry] : names.all()) {
        n += entry.current && entry.current->n_uses > 0;
    }
    for (const auto & delta : leaving) {
        n += delta->n_uses > 0;
    }
    return n;
}

size_t server_delta_memory::n_bytes(const server_delta_names & names, const server_delta_entry * except) const {
    size_t n = freeing ? freeing->n_bytes : 0;
    for (const auto & [name, entry] : names.all()) {
        n += entry.current && &entry != except ? entry.current->n_bytes : 0;
    }
    for (const auto * list : { &leaving, &dead }) {
        for (const auto & delta : *list) {
            n += delta->n_bytes;
        }
    }
    return n;
}

//
// the budget
//

// Returns whether it stays until the other parts of a blend are there. Not what nobody holds: after a reload that is the new file, and the
// old one, which the blend's request has, may need its room.
static bool is_kept_for_blend(const server_delta_entry & entry) {
    return entry.is_awaited && entry.is_in_use();
}

server_delta_memory::room server_delta_memory::room_for(const server_delta_names & names, const server_delta_entry & entry,
                                                        std::string & err) const {
    const size_t wanted = entry.job->n_bytes;
    if (n_bytes_max == 0 || n_bytes(names, &entry) + wanted <= n_bytes_max) {
        return room::yes;
    }
    size_t n_pinned = 0;
    for (const auto & [name, other] : names.all()) {
        const bool stays = other.is_pinned || (entry.is_awaited && is_kept_for_blend(other));
        n_pinned += other.current && &other != &entry && stays ? other.current->n_bytes : 0;
    }
    if (n_pinned + wanted > n_bytes_max) {
        err = "delta '" + entry.name + "' does not fit: it takes " + std::to_string(wanted) + " bytes, --delta-memory allows " +
              std::to_string(n_bytes_max) + ", of which " +
              (entry.is_awaited ? "pinned deltas and other parts of the blend have " : "pinned deltas have ") + std::to_string(n_pinned);
        return room::never;
    }
    return room::later;
}

void server_delta_memory::send_away(server_delta_names & names, const server_delta_entry & entry) {
    std::vector<server_delta_entry *> victims;
    size_t                            n_kept = 0; // bytes that no one was told to leave
    for (const auto & delta : leaving) {
        // What the blend that is being brought in has of it stays until the blend is complete.
        const auto of_name = names.find(delta->name);
        n_kept += of_name != nullptr && of_name->is_awaited && delta->n_uses > 0 ? delta->n_bytes : 0;
    }
    for (auto & [name, other] : names.all()) {
        if (!other.current || &other == &entry || other.is_leaving) {
            continue;
        }
        n_kept += other.current->n_bytes;
        if (!other.is_pinned && !is_kept_for_blend(other)) {
            victims.push_back(&other);
        }
    }
    std::sort(victims.begin(), victims.end(), [](const auto * a, const auto * b) {
        return std::make_pair(a->is_in_use(), a->needed_us) < std::make_pair(b->is_in_use(), b->needed_us);
    });
    for (auto * victim : victims) {
        if (n_kept + entry.job->n_bytes <= n_bytes_max) {
            break;
        }
        n_kept -= victim->current->n_bytes;
        SRV_INF("delta '%s': goes to make room for '%s', %zu bytes%s\n", victim->name.c_str(), entry.name.c_str(), victim->current->n_bytes,
                victim->is_in_use() ? ", after its requests" : "");
        names.counts(victim->name).n_evictions++;
        victim->is_leaving = true;
        retire_if_left(*victim);
    }
}
