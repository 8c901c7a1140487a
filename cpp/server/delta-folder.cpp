#include "delta-folder.h"

#include "delta-name-rules.h"
#include "delta-ref.h"
#include "server-common.h"

#include <algorithm>
#include <filesystem>

namespace fs = std::filesystem;

static const std::string SUFFIX = ".dq.gguf";

static const std::chrono::seconds READ_INTERVAL(1);

// Whether directory `path`, links followed, is `dir` or lies in it.
static bool is_inside(const fs::path & dir, const fs::path & path) {
    std::error_code err;
    const fs::path  real_dir  = fs::canonical(dir, err);
    const fs::path  real_path = err ? fs::path() : fs::canonical(path, err);
    return !err && std::mismatch(real_dir.begin(), real_dir.end(), real_path.begin(), real_path.end()).first == real_dir.end();
}

static bool is_file(const fs::path & path) {
    std::error_code err;
    return fs::is_regular_file(path, err); // follows links; a FIFO or a device would be waited for
}

// The names of the files that are to be models.
static std::set<std::string> read_names(const std::string & dir) {
    std::error_code        err;
    fs::directory_iterator file(dir, err);
    std::set<std::string>  names;
    for (; !err && file != fs::directory_iterator(); file.increment(err)) {
        const std::string name = file->path().filename().string();
        if (name.size() > SUFFIX.size() && name[0] != '.' && string_ends_with(name, SUFFIX)) {
            names.insert(name);
        }
    }
    if (err) {
        throw std::invalid_argument("--deltas-dir '" + dir + "': " + err.message());
    }
    return names;
}

std::vector<dqrelo_delta_source> server_delta_folder::find_new() {
    std::vector<dqrelo_delta_source>  found;
    const std::lock_guard<std::mutex> lock(mutex); // who waits here asks for what is being read
    const auto                        now = std::chrono::steady_clock::now();
    if (dir.empty() || (was_read && now - read_at < READ_INTERVAL)) {
        return found;
    }
    was_read         = true;
    read_at          = now;
    const auto names = read_names(dir);
    for (const std::string & name : names) {
        if (seen.count(name) > 0) {
            continue;
        }
        const dqrelo_delta_source source = { name.substr(0, name.size() - SUFFIX.size()), (fs::path(dir) / name).string() };
        const std::string         fault  = is_file(source.path) ? server_delta_name_fault(source.name) : "it is no regular file";
        if (fault.empty()) {
            found.push_back(source);
        } else {
            SRV_WRN("--deltas-dir: %s is left out: %s\n", safe_json_to_str(name).c_str(), fault.c_str());
        }
    }
    seen = names;
    return found;
}

std::string server_delta_folder::path_of(const std::string & file) const {
    if (dir.empty()) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST, "files are loaded from --deltas-dir only, and this server has none");
    }
    const fs::path relative(file);
    const bool     has_dots = std::any_of(relative.begin(), relative.end(), [](const fs::path & part) { return part.string()[0] == '.'; });
    const bool     has_control = std::any_of(file.begin(), file.end(), [](unsigned char ch) { return ch < ' '; });
    if (file.empty() || relative.is_absolute() || relative.has_root_path() || has_dots || has_control ||
        file.find('\\') != std::string::npos) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST,
                                 "file " + safe_json_to_str(file) +
                                     ": expected a path inside --deltas-dir, relative to it, without '..' and hidden files");
    }
    const fs::path path = fs::path(dir) / relative;
    if (!is_file(path) || !is_inside(dir, path.parent_path())) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "file '" + file + "': not found in --deltas-dir");
    }
    return path.string();
}
