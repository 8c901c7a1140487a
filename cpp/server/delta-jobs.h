// delta-jobs.h: loads that were asked for, in the order in which the loader takes them, and the one that it is at. Guarded by the
// registry's lock.
#pragma once

#include "delta-entry.h"

#include <deque>
#include <memory>
#include <string>

// What the loader has to do next: one of these, or nothing.
struct server_delta_work {
    std::shared_ptr<server_delta>     to_free;
    bool                              makes_room = false; // A load waits for what is freed.
    std::shared_ptr<server_delta_job> to_size;            // Asks how much memory its file will take.
    std::shared_ptr<server_delta_job> to_load;
    std::string                       name; // Names the job's delta.
    bool                              wants_main_loop = false;
};

class server_delta_jobs {
public:
    // Returns the entry's job, which is made if it has none.
    std::shared_ptr<server_delta_job> ask(server_delta_entry & entry, const std::string & path, bool is_reload);

    // The entry's job is over, well (no error) or not.
    void finish(server_delta_entry & entry, int error_type, const std::string & error);

    // The entry's job goes behind all others.
    void put_off(const server_delta_entry & entry);

    // Returns the names whose jobs are not over; one of them may be at work.
    const std::deque<std::string> & waiting() const { return queue; }

    // The loader is at a job from start() to end().
    void start(const std::shared_ptr<server_delta_job> & job) { at_work = job; }
    void end() { at_work.reset(); }
    bool is_at(const server_delta_job & job) const { return at_work.get() == &job; }

private:
    std::deque<std::string>           queue;
    std::shared_ptr<server_delta_job> at_work;
};
