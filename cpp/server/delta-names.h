// delta-names.h: which names a server knows, what each stands for, and what was counted under it. Guarded by the registry's lock.
#pragma once

#include "delta-entry.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

class server_delta_names {
public:
    // Returns false if the name is taken.
    bool add(const std::string & name, const std::string & path, size_t n_bytes, bool is_pinned);

    void forget(const std::string & name);

    // Returns NULL for a name that is not known.
    server_delta_entry *       find(const std::string & name);
    const server_delta_entry * find(const std::string & name) const;

    // Returns NULL also for one that is being unloaded: no new request gets it.
    server_delta_entry *       find_open(const std::string & name);
    const server_delta_entry * find_open(const std::string & name) const;

    // Every entry: in the order in which they became known, or in that of their names.
    std::vector<const server_delta_entry *>           in_order() const;
    std::map<std::string, server_delta_entry> &       all() { return entries; }
    const std::map<std::string, server_delta_entry> & all() const { return entries; }

    server_delta_counts &                              counts(const std::string & name) { return counts_by_name[name]; }
    const std::map<std::string, server_delta_counts> & all_counts() const { return counts_by_name; }

private:
    std::map<std::string, server_delta_entry>  entries;
    std::map<std::string, server_delta_counts> counts_by_name; // Has names that are gone, too.
    uint64_t                                   n_added = 0;
};
