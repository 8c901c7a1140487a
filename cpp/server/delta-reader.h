// delta-reader.h: reads delta files, whose file system may not answer, and which somebody may be busy replacing.
#pragma once

#include "delta-entry.h"
#include "dqrelo.h"

#include <functional>
#include <memory>
#include <string>

struct server_delta_file_deleter {
    void operator()(dqrelo_file * file) const { dqrelo_file_free(file); }
};

using server_delta_file_ptr = std::unique_ptr<dqrelo_file, server_delta_file_deleter>;

struct server_delta_reading {
    server_delta_file_ptr file; // NULL comes with one line in `err`.
    std::string           err;
    server_delta_stamp    stamp;             // of the file before it was read
    bool                  is_silent = false; // nothing happened for some seconds: it may go better another time
};

// Opens the file at `path` as dqrelo_file_open does, on a thread of its own (delta-io.h). One that changes meanwhile is read again, a few
// times, whether the read went well or not.
server_delta_reading server_delta_read_file(const std::string & path, const dqrelo_file_params & params,
                                            const std::function<bool()> & is_wanted);
