// delta-folder.h: the files that names stand for, as they come, change and go; and --deltas-dir, the one place from which a request may
// name a file. All I/O is on threads that may hang (delta-io.h).
#pragma once

#include "delta-entry.h"
#include "delta-waiting.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

// What a look at the files found since the last one.
struct server_delta_sighting {
    std::vector<std::pair<std::string, server_delta_stamp>> added; // "dir/math.dq.gguf" under "math", by name
    std::vector<std::string>                                gone;  // paths of such files
    std::vector<server_delta_stamp>                         changed;
};

// Looks at one file. Throws server_delta_error, a 503, where its file system does not answer.
server_delta_stamp server_delta_look_at(const std::string & path, const server_should_stop & should_stop);

class server_delta_folder {
public:
    explicit server_delta_folder(std::string dir) : dir(std::move(dir)) {}

    // Looks at the directory, and at the files of `watched`, of which it reports those that have another stamp. What cannot be a model is
    // left out, with a warning where its name says that it was to be one. A file may be a link to anywhere: who may write into the
    // directory decides. Looks once a second at most, and not while a look hangs; a call that comes sooner finds nothing. Throws
    // std::invalid_argument if the directory cannot be read.
    server_delta_sighting look(const std::vector<server_delta_stamp> & watched);

    // The file that a request names, or the only delta in the directory that it names. Throws server_delta_error: 400 unless it is a path
    // in the directory (relative to it, or absolute) without "..", hidden parts and links to directories elsewhere; 404 if there is no such
    // file; 503 if the file system does not answer.
    server_delta_stamp find(const std::string & file, const server_should_stop & should_stop) const;

private:
    const std::string dir; // Empty means that there is none.

    std::mutex                            mutex; // Guards what follows.
    std::set<std::string>                 seen;  // Holds names of files.
    bool                                  was_read = false;
    std::chrono::steady_clock::time_point read_at;
    std::weak_ptr<void>                   hanging; // lives as long as a look that was left behind
};
