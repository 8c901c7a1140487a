// delta-folder.h: --deltas-dir, the one place from which a request may name a file.
#pragma once

#include "delta-options.h"

#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <vector>

class server_delta_folder {
public:
    explicit server_delta_folder(std::string dir) : dir(std::move(dir)) {}

    // "dir/math.dq.gguf" for every such file that was not there at the last call, by name. What cannot be a model is left out, with a
    // warning where its name says that it was to be one. A file may be a link to anywhere: who may write into the directory decides. The
    // directory is read once a second at most; a call that comes sooner finds nothing. Throws std::invalid_argument if it cannot be read.
    std::vector<dqrelo_delta_source> find_new();

    // The path of a file that a request names. Throws server_delta_error: 400 unless it is a relative path without "..", hidden parts and
    // links to directories elsewhere; 404 if there is no such file.
    std::string path_of(const std::string & file) const;

private:
    const std::string dir; // empty: there is none

    std::mutex                            mutex; // of what follows
    std::set<std::string>                 seen;  // names of files
    bool                                  was_read = false;
    std::chrono::steady_clock::time_point read_at;
};
