// delta-reader.h: reads delta files, whose file system may not answer, and which somebody may be busy replacing.
#pragma once

#include "delta-entry.h"
#include "dqrelo.h"

#include <atomic>
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

// Whether the main loop decodes. Reads that are left behind may ask when the server is gone.
using server_delta_decoding = std::shared_ptr<const std::atomic<bool>>;

// Lets a load leave the cores to who decodes. `decoding` has to live as long as the load takes.
void server_delta_pace(dqrelo_load_params & params, const server_delta_decoding & decoding);

// Opens the file at `path` as dqrelo_file_open does, on a thread of its own (delta-io.h), paced by `decoding`. One that changes meanwhile
// is read again, a few times, whether the read went well or not.
server_delta_reading server_delta_read_file(const std::string & path, const dqrelo_file_params & params,
                                            const server_delta_decoding & decoding, const std::function<bool()> & is_wanted);
