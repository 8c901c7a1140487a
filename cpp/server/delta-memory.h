// delta-memory.h: the files of deltas that are in memory, how many bytes they take, and who goes to make room. A file serves as its
// entry's `current`, then leaves: it is retired (no new request gets it), unbound by the main loop if it is bound, and freed by the loader.
// Guarded by the registry's lock.
#pragma once

#include "delta-names.h"

#include <memory>
#include <string>
#include <vector>

class server_delta_memory {
public:
    explicit server_delta_memory(size_t n_bytes_max) : n_bytes_max(n_bytes_max) {}

    // The entry's file leaves service: at once, or if it was told to (is_leaving) and nobody uses it any more.
    void retire(server_delta_entry & entry);
    void retire_if_left(server_delta_entry & entry);

    // A file that never served goes to be freed.
    void discard(const std::shared_ptr<server_delta> & delta);

    // Retired files that may be bound or held, and the report that one of them is neither.
    const std::vector<std::shared_ptr<server_delta>> & retired() const { return leaving; }
    bool                                               any_unheld() const;
    bool                                               has_old_files() const { return !leaving.empty() || !dead.empty(); }
    void                                               unbound(const std::shared_ptr<server_delta> & delta);

    // Returns what the loader is to free next, or NULL; it counts as long as freed() was not called.
    std::shared_ptr<server_delta> next_to_free();
    void                          freed() { freeing.reset(); }
    bool                          is_freeing() const { return freeing != nullptr; }

    // Takes every file out, for the caller to free: nothing may be bound or in the loader's hands.
    std::vector<std::shared_ptr<server_delta>> take_all(server_delta_names & names);

    // Files of this name that have left service and are not freed yet.
    std::vector<const server_delta *> old_files(const std::string & name) const;

    // Deltas, by file, that requests run with.
    size_t n_active(const server_delta_names & names) const;

    // Returns the bytes of all files; without what `except` has in service, where given.
    size_t n_bytes(const server_delta_names & names, const server_delta_entry * except = nullptr) const;

    enum class room { yes, later, never };

    // Returns whether the entry's job, whose size is known, fits: beside all that is in memory, or when others have gone. What the entry
    // has in service does not count: a reload has both files in memory for a while. Old files of its name that still have requests do.
    // `err` is why it never fits.
    room room_for(const server_delta_names & names, const server_delta_entry & entry, std::string & err) const;

    // Tells as many deltas to leave as the entry's job needs: first idle ones, least recently used first, then those in use, which then
    // get no more requests.
    void send_away(server_delta_names & names, const server_delta_entry & entry);

private:
    const size_t                               n_bytes_max; // 0 means no limit.
    std::vector<std::shared_ptr<server_delta>> leaving;     // Holds the retired ones.
    std::vector<std::shared_ptr<server_delta>> dead;        // Waits for the loader to free it.
    std::shared_ptr<server_delta>              freeing;     // The loader frees this one, outside the lock.
};
