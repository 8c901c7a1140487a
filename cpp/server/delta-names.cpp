#include "delta-names.h"

#include <algorithm>

bool server_delta_names::add(const std::string & name, const std::string & path, size_t n_bytes, bool is_pinned) {
    if (find(name) != nullptr) {
        return false;
    }
    auto & entry    = entries[name];
    entry.name      = name;
    entry.path      = path;
    entry.n_bytes   = n_bytes;
    entry.is_pinned = is_pinned;
    entry.order     = n_added++;
    counts_by_name[name];
    return true;
}

void server_delta_names::forget(const std::string & name) {
    entries.erase(name);
}

const server_delta_entry * server_delta_names::find(const std::string & name) const {
    const auto it = entries.find(name);
    return it == entries.end() ? nullptr : &it->second;
}

server_delta_entry * server_delta_names::find(const std::string & name) {
    const auto it = entries.find(name);
    return it == entries.end() ? nullptr : &it->second;
}

const server_delta_entry * server_delta_names::find_open(const std::string & name) const {
    const auto entry = find(name);
    return entry == nullptr || entry->is_draining ? nullptr : entry;
}

server_delta_entry * server_delta_names::find_open(const std::string & name) {
    const auto entry = find(name);
    return entry == nullptr || entry->is_draining ? nullptr : entry;
}

std::vector<const server_delta_entry *> server_delta_names::in_order() const {
    std::vector<const server_delta_entry *> list;
    for (const auto & [name, entry] : entries) {
        list.push_back(&entry);
    }
    std::sort(list.begin(), list.end(), [](const auto * a, const auto * b) { return a->order < b->order; });
    return list;
}
