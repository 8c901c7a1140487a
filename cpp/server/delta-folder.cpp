#include "delta-folder.h"

#include "delta-ref.h"
#include "server-common.h"

#include <algorithm>
#include <filesystem>

namespace fs = std::filesystem;

static const std::string SUFFIX = ".dq.gguf";

// Whether `path`, links followed, lies in `dir`.
static bool is_inside(const fs::path & dir, const fs::path & path) {
    std::error_code err;
    const fs::path  real_dir  = fs::canonical(dir, err);
    const fs::path  real_path = err ? fs::path() : fs::canonical(path, err);
    return !err && std::mismatch(real_dir.begin(), real_dir.end(), real_path.begin(), real_path.end()).first == real_dir.end();
}

std::vector<dqrelo_delta_source> server_delta_folder_list(const std::string & dir) {
    std::error_code        err;
    fs::directory_iterator files(dir, err);
    if (err) {
        throw std::invalid_argument("--deltas-dir '" + dir + "': " + err.message());
    }
    std::vector<dqrelo_delta_source> found;
    for (const auto & file : files) {
        const std::string name = file.path().filename().string();
        if (name.size() <= SUFFIX.size() || !string_ends_with(name, SUFFIX)) {
            continue;
        }
        if (!is_inside(dir, file.path())) {
            SRV_WRN("--deltas-dir: '%s' leads out of the directory and is left out\n", name.c_str());
            continue;
        }
        found.push_back({ name.substr(0, name.size() - SUFFIX.size()), file.path().string() });
    }
    std::sort(found.begin(), found.end(), [](const auto & a, const auto & b) { return a.name < b.name; });
    return found;
}

std::string server_delta_folder_path(const std::string & dir, const std::string & file) {
    if (dir.empty()) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST, "files are loaded from --deltas-dir only, and this server has none");
    }
    const fs::path relative(file);
    const bool     has_dots    = std::find(relative.begin(), relative.end(), "..") != relative.end();
    const bool     has_control = std::any_of(file.begin(), file.end(), [](unsigned char ch) { return ch < ' '; });
    if (file.empty() || relative.is_absolute() || relative.has_root_path() || has_dots || has_control ||
        file.find('\\') != std::string::npos) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST, "file " + safe_json_to_str(file) +
                                                                 ": expected a path inside --deltas-dir, relative to it and without '..'");
    }
    const fs::path  path = fs::path(dir) / relative;
    std::error_code err;
    if (!fs::exists(path, err) || !is_inside(dir, path)) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "file '" + file + "': not found in --deltas-dir");
    }
    return path.string();
}
