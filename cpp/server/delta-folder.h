// delta-folder.h: --deltas-dir, the one place from which a request may name a file.
#pragma once

#include "delta-options.h"

#include <string>
#include <vector>

// "dir/math.dq.gguf" for every such file in `dir`, by name. A file that lies elsewhere (a link out of `dir`) is left out, with a warning.
// Throws std::invalid_argument if `dir` is not a readable directory.
std::vector<dqrelo_delta_source> server_delta_folder_list(const std::string & dir);

// The path of `file` in `dir`. Throws server_delta_error: 400 unless it is a relative path that stays in `dir`, links followed; 404 if
// there is no such file.
std::string server_delta_folder_path(const std::string & dir, const std::string & file);
