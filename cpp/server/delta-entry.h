// delta-entry.h: what the server knows about one delta: its name, and each file that it loaded for it.
#pragma once

#include "delta-vocab.h"
#include "eog.h"
#include "loaded-deltas.h"
#include "server-common.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>

// What identifies a file's content without reading it: another file under its path, or a change of it, has another one.
struct server_delta_stamp {
    std::string path;
    uintmax_t   n_bytes    = 0;
    uint64_t    device     = 0;
    uint64_t    inode      = 0;
    int64_t     changed_ns = 0; // Tells when the content changed, as the file system knows it.
    int64_t     touched_ns = 0; // Tells when the content, the name, or the time above changed.

    // Looks at a file. One that cannot be looked at has 0 bytes. As this is I/O, no lock may be held.
    static server_delta_stamp of(const std::string & path);
    bool                      operator==(const server_delta_stamp & other) const;
};

// One loaded file. A reload makes another one; this one lives until its last request has ended. Constant once it serves, but for the last
// two.
struct server_delta {
    std::string        name; // Requests call the delta by this name.
    std::string        path;
    std::string        hash;    // Holds the content hash, 64 hex digits.
    server_delta_stamp stamp;   // Describes the file as it was when it was loaded.
    json               quality; // Has what it keeps of its fine-tune, as its file says; null where it does not.
    double             ratio   = 0.0;
    double             load_ms = 0.0;
    size_t             n_bytes = 0; // bytes in all memories

    std::map<std::string, size_t> memory; // Has the bytes in each memory: "CPU", and devices.

    dqrelo_applied     applied;
    server_delta_vocab vocab;
    dqrelo_eog         eog;  // Holds the end tokens; empty means the vocabulary's.
    server_chat_params chat; // Has the base's parameters with the delta's template.

    common_params_sampling sampling; // Has the server's defaults with the fine-tune's.

    // NULL after the server slept. It is the main loop's, and the loader's before and after it serves; any thread may ask is_bound().
    dqrelo_delta * handle = nullptr;
    // Counts the requests that hold it. Guarded by the registry's lock.
    int n_uses = 0;

    server_delta() = default;
    ~server_delta() { free_handle(); }
    server_delta(const server_delta &)             = delete;
    server_delta & operator=(const server_delta &) = delete;

    bool is_bound() const { return handle != nullptr && dqrelo_n_bound(handle) > 0; }

    // Nothing may be bound to it.
    void free_handle();
};

// A load that was asked for. Guarded by the registry's lock.
struct server_delta_job {
    std::string path;
    size_t      n_bytes     = 0; // bytes that it will take
    bool        is_sized    = false;
    bool        is_reload   = false; // Loads even where a file is loaded already.
    bool        is_done     = false;
    int         n_silent    = 0; // Counts how often its file system did not answer.
    int         n_overtaken = 0; // Counts the jobs that found room while it waited for some.
    int         n_waiting   = 0; // Counts the requests that wait for it. When it went well they become the entry's n_entitled.
    int         error_type  = 0; // Set where `error` is set.
    std::string error;
};

// Since the start; they outlive the delta, so that a counter never falls.
struct server_delta_counts {
    uint64_t n_requests  = 0;
    uint64_t n_prompt    = 0; // tokens
    uint64_t n_generated = 0;
    uint64_t n_loads     = 0;
    uint64_t n_failures  = 0;
    uint64_t n_evictions = 0;
    double   load_s      = 0.0;
};

// A name and what it stands for. Guarded by the registry's lock.
struct server_delta_entry {
    std::string name;
    std::string path;
    uint64_t    order       = 0;     // Numbers the entries as they became known, which is the order of lists.
    size_t      n_bytes     = 0;     // bytes of the file
    bool        is_pinned   = false; // Never put out to make room.
    bool        is_awaited  = false; // A part of the blend that is being brought in: not put out before that is complete.
    bool        is_leaving  = false; // Put out as soon as its requests have ended, which others wait for.
    bool        is_draining = false; // Unloaded: it gets no new requests, and the name goes with the last one.
    int64_t     needed_us   = 0;     // Tells when its load was asked for or done, or a request last got it, by the clock of this process.
    int64_t     used_s      = 0;     // Tells when a request last got it, in Unix time; 0 means never.

    bool               is_found  = false; // in --deltas-dir: nobody gave the name
    bool               is_lost   = false; // was found, and its file is gone: the name goes when it leaves memory
    bool               is_broken = false; // its file cannot be served: not tried again until it changes, or somebody says so
    server_delta_stamp broken;            // that file as it was
    std::string        reason;            // what went wrong last, empty: nothing
    std::string        hash;              // of the last load, empty: never loaded
    json               quality;           // of the last load
    double             ratio     = 0.0;
    int32_t            n_applied = 0;

    // Requests that waited for the load, or wait for their turn, and did not start yet. The delta stays until they had it: one that went
    // before them would be loaded for nothing, and again.
    int n_entitled = 0;

    std::shared_ptr<server_delta>     current; // Requests get this file; NULL means that none is loaded.
    std::shared_ptr<server_delta_job> job;     // Requests wait for this load; NULL means that there is none.

    // Returns "registered", "loading", "loaded", "draining" or "failed".
    const char * state() const;

    // Returns whether requests run with what is loaded, or are about to.
    bool is_in_use() const { return current && (current->n_uses > 0 || n_entitled > 0); }
};
