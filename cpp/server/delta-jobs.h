// delta-jobs.h: loads that were asked for, in the order in which the loader takes them, and the one that it is at. Guarded by the
// registry's lock.
#pragma once

#include "delta-entry.h"

#include <deque>
#include <memory>
#include <string>

// What the loader has to do next: one of these.
struct server_delta_work {
    std::shared_ptr<server_delta>     to_free;
    std::shared_ptr<server_delta_job> to_load;
    std::string                       name;                   // of what is to be loaded
    bool                              must_verify     = true; // the digests of this file were not checked yet
    bool                              wants_main_loop = false;
};

class server_delta_jobs {
public:
    // The entry's job, which is made if it has none.
    std::shared_ptr<server_delta_job> ask(server_delta_entry & entry, const std::string & path, bool is_reload);

    // The entry's job is over, well (no error) or not.
    void finish(server_delta_entry & entry, int error_type, const std::string & error);

    // Names whose jobs are not over; the first one may be at work.
    const std::deque<std::string> & waiting() const { return queue; }

    // A job goes from start() through read(), with a file or NULL, and, where it has one, the main loop's take_unchecked(), to end().
    void                          start(const server_delta_work & work);
    void                          read(const std::shared_ptr<server_delta> & delta);
    std::shared_ptr<server_delta> take_unchecked();
    server_delta_work             end();

    bool is_at_work() const { return at_work.to_load != nullptr; }
    bool is_reading() const { return is_reading_; }
    bool has_unchecked() const { return unchecked != nullptr; }

private:
    std::deque<std::string>       queue;
    server_delta_work             at_work;             // what is loaded, until the main loop has checked it
    std::shared_ptr<server_delta> unchecked;           // loaded, for the main loop to check
    bool                          is_reading_ = false; // the loader reads a file, outside the lock
};
