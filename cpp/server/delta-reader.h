// delta-reader.h: reads delta files on threads that may hang: on a file system that does not answer, a system call can last for ever. Such
// a thread has nothing but the file, so it can be left behind: by a loader that goes on, and by a server that ends.
#pragma once

#include "dqrelo.h"

#include <functional>
#include <memory>
#include <string>

struct server_delta_file_deleter {
    void operator()(dqrelo_file * file) const { dqrelo_file_free(file); }
};

using server_delta_file_ptr = std::unique_ptr<dqrelo_file, server_delta_file_deleter>;

struct server_delta_reading {
    server_delta_file_ptr file; // NULL with one line in `err`
    std::string           err;
    bool                  is_silent = false; // nothing happened for some seconds: it may go better another time
};

// Opens the file at `path` as dqrelo_file_open does, on a thread of its own. Ends early where the file system is silent, and where
// `is_wanted`, which is asked all the time on this thread, returns false.
server_delta_reading server_delta_read_file(const std::string & path, const dqrelo_file_params & params,
                                            const std::function<bool()> & is_wanted);
