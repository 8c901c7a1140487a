// delta-registry.h: the deltas of a server, for the three kinds of threads that meet here. HTTP threads acquire deltas and wait. The loader
// (delta-loader.h) reads files, checks them and frees them. The main loop, which owns the context, unbinds old deltas from it, between two
// steps.
//
// Lock discipline: `mutex` guards the parts (names, memory, turns, jobs, waiting), which have no lock of their own and are reached through
// the registry only. A function that changes them holds a `change`, one that reads them a plain lock. Nothing slow is done under it: no
// file is looked at, no client is asked, and no function of the server's queue is called (the queue calls back with its own lock held).
#pragma once

#include "delta-jobs.h"
#include "delta-memory.h"
#include "delta-names.h"
#include "delta-ref.h"
#include "delta-turns.h"
#include "delta-waiting.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

struct server_delta_limits {
    size_t n_bytes_max   = 0;   // bytes of all that is loaded, in all memories; 0 means no limit
    size_t n_active_max  = 0;   // deltas that run at a time; 0 means no limit
    size_t n_waiting_max = 512; // requests that wait for a delta at a time
};

class server_delta_registry : public std::enable_shared_from_this<server_delta_registry> {
public:
    explicit server_delta_registry(const server_delta_limits & limits) :
        limits(limits), memory(limits.n_bytes_max), turns(limits.n_active_max), waiting(limits.n_waiting_max) {}

    // --- any thread

    // Makes a name known, with its file's size. False if it is taken.
    bool add(const std::string & name, const std::string & path, size_t n_bytes, bool is_pinned);

    // What a look at the files found (delta-folder.h). A found file makes its name known, or is back; false if the name is taken. Names of
    // lost ones go, those in memory when they leave it. A broken file that changed is tried again.
    bool                            found(const std::string & name, const server_delta_stamp & stamp, bool is_pinned);
    void                            lost(const std::vector<std::string> & paths);
    std::vector<server_delta_stamp> broken() const;
    void                            changed(const std::vector<server_delta_stamp> & before);

    // Waits until the delta is loaded and has its turn, first come first served. Throws server_delta_error: 404 for a name that is not
    // known, 503 with the reason if it cannot fit or too many wait already, 500 with the reason if its file cannot be served.
    std::shared_ptr<const server_delta_hold> acquire(const std::string & name, const server_should_stop & should_stop);

    // The same for all parts of a blend. Those that are not there are brought in for one blend at a time, so that no two of them hold what
    // the other one waits for.
    std::shared_ptr<const server_delta_use> acquire_all(const std::vector<std::string> & parts, const server_should_stop & should_stop);

    // Loads a delta, or another file in place of the loaded one (then requests get the old one until the new one can serve, and keep it if
    // it cannot). Returns when it can serve; throws server_delta_error where it cannot. With `if_hash`, nothing changes (412) unless that
    // is the name's content hash when its turn to change has come: of several calls with the same one, the first changes it.
    void load(const std::string & name, const std::string & path, bool is_reload, const server_should_stop & should_stop,
              const std::string & if_hash = "");

    // Takes the name away and waits until the last request that has it is done. Throws server_delta_error if there is no such name, and as
    // above for `if_hash`.
    void unload(const std::string & name, const server_should_stop & should_stop, const std::string & if_hash = "");

    // Copies of all entries in the order in which they became known, with the number of requests that hold each (of all its files).
    struct row {
        server_delta_entry  entry;
        server_delta_counts counts;
        int                 n_running  = 0;
        size_t              n_resident = 0; // bytes

        std::map<std::string, size_t> memory; // Has the bytes in each memory.
    };
    std::vector<row> rows() const;

    // Counts by name, also of names that are gone.
    std::map<std::string, server_delta_counts> all_counts() const;

    bool   has(const std::string & name) const; // false for one that is being unloaded
    bool   is_broken(const std::string & name) const;
    bool   is_loaded(const std::string & name) const;
    void   pin(const std::string & name);
    size_t n_resident() const;
    size_t n_waiting() const; // Counts requests, and calls that load and unload.

    // Returns the name that each waiting request waits for; a blend's is its first part, or the part that is brought in.
    std::vector<std::string> waiting_requests() const;

    // Returns an empty path for a name that is not known.
    std::string path_of(const std::string & name) const;

    void count(const server_delta & delta, uint64_t n_prompt, uint64_t n_generated);
    void count_request(const server_delta & delta);

    const server_delta_limits limits;

    // --- server_delta_hold

    void release(const std::shared_ptr<server_delta> & delta);

    // --- the main loop

    // Takes a delta in that was loaded before the server serves.
    void put(const std::shared_ptr<server_delta> & delta);

    // Returns whether there is a retired delta: a fast answer for every step.
    bool has_work() const { return is_work; }

    // Retired deltas that may be bound, and the report that one of them is bound to no sequence any more. The main loop was told to look,
    // and has.
    std::vector<std::shared_ptr<server_delta>> retired();
    void                                       unbound(const std::shared_ptr<server_delta> & delta);

    // All deltas out, which must be bound to nothing, and back to be loaded. Between the two the loader rests.
    void sleep();
    void wake();

    // Waiting requests fail from here on, as soon as the watch looks. Safe in a signal handler.
    void stop() { is_stopping = true; }

    // Says whether the next step decodes anything.
    void set_decoding(bool is_any) { *is_decoding = is_any; }

    // --- the loader

    std::shared_ptr<const std::atomic<bool>> decoding() const { return is_decoding; }

    // Returns false when the server ends. Waits until there is work; where it may not, `next` is empty if there is none.
    bool next_work(server_delta_work & next, bool may_wait = true);
    void freed();

    // The answer to to_size: bytes, or an error. `stamp`: of the file that was read.
    void sized(const server_delta_work & done, size_t n_bytes, const std::string & err, const server_delta_stamp & stamp);

    // Its file system does not answer: it is tried again behind the other jobs, a few times.
    void put_off(const server_delta_work & work, const std::string & err);

    // Returns whether the file of this work is still to be read: not if the server ends or sleeps, or the name was unloaded.
    bool is_wanted(const server_delta_work & work) const;

    // Before a file that was read is loaded for the model and its context: false if it is not wanted any more. They stay until loaded()
    // then.
    bool begin_loading(const server_delta_work & work);
    // Requests get this delta from here on, if they still want it. NULL with an error, about the file of that stamp.
    void loaded(const server_delta_work & done, const std::shared_ptr<server_delta> & delta, const std::string & err,
                const server_delta_stamp & stamp);

    void end();

    // --- the watch

    // Returns all that wait, a moment after the last call; waits until there are some. False when the server ends.
    bool next_watch(std::vector<std::shared_ptr<server_delta_waiter>> & waiters);
    void gone(server_delta_waiter & waiter);

private:
    class change;

    class visit;

    class blend_turn;

    std::shared_ptr<const server_delta_hold> hold(server_delta_entry & entry);
    std::shared_ptr<const server_delta_use>  take_all(const std::vector<std::string> & parts);

    void finish(server_delta_entry & entry, int error_type, const std::string & error);
    void wait_for_load(change & mine, visit & visit, server_delta_claim & claim, server_delta_entry & entry);
    int  n_running(const server_delta_entry & entry) const;
    bool next_to_free(server_delta_work & next);
    bool next_load(server_delta_work & next);
    bool may_load(server_delta_entry & entry, server_delta_job *& first_waiting);
    bool needs_loader() const;
    void call_first_in_line();
    void fail(const server_delta_work & done, const std::string & err, const server_delta_stamp & stamp);
    void take_over(const std::shared_ptr<server_delta> & delta);
    void forget_unused();

    mutable std::mutex      mutex;
    std::condition_variable loader_called;
    std::condition_variable watch_called;
    std::condition_variable rested; // Told when the loader is at nothing that needs the model or its context.
    server_delta_names      names;
    server_delta_memory     memory;
    server_delta_turns      turns;
    server_delta_jobs       jobs;
    server_delta_waiting    waiting;
    bool                    is_woken        = false; // The main loop was told to look.
    bool                    is_asleep       = false;
    bool                    is_blend_coming = false; // The parts of a blend are brought in: those are marked is_awaited.
    bool                    is_loading      = false; // True between begin_loading() and loaded().
    bool                    is_ended        = false;
    std::atomic<bool>       is_work{ false };

    const std::shared_ptr<std::atomic<bool>> is_decoding = std::make_shared<std::atomic<bool>>(false);
    std::atomic<bool>                        is_stopping{ false };
};
