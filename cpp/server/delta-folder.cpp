#include "delta-folder.h"

#include "delta-address.h"
#include "delta-io.h"
#include "delta-name-rules.h"
#include "delta-ref.h"
#include "server-common.h"

#include <algorithm>
#include <filesystem>

namespace fs = std::filesystem;

static const std::string SUFFIX = ".dq.gguf";

static const std::chrono::seconds READ_INTERVAL(1);

// Returns whether directory `path`, links followed, is `dir` or lies in it.
static bool is_inside(const fs::path & dir, const fs::path & path) {
    std::error_code err;
    const fs::path  real_dir  = fs::canonical(dir, err);
    const fs::path  real_path = err ? fs::path() : fs::canonical(path, err);
    return !err && std::mismatch(real_dir.begin(), real_dir.end(), real_path.begin(), real_path.end()).first == real_dir.end();
}

static bool is_file(const fs::path & path) {
    std::error_code err;
    return fs::is_regular_file(path, err); // Follows links. A FIFO or a device would be waited for.
}

// The names of the files that are to be models. A link to nothing is none.
static std::set<std::string> read_names(const std::string & dir, server_delta_life & life) {
    std::error_code        err, none;
    fs::directory_iterator file(dir, err);
    std::set<std::string>  names;
    for (; !err && !life.show() && file != fs::directory_iterator(); file.increment(err)) {
        const std::string name = file->path().filename().string();
        if (name.size() > SUFFIX.size() && name[0] != '.' && string_ends_with(name, SUFFIX) &&
            fs::status(file->path(), none).type() != fs::file_type::not_found) {
            names.insert(name);
        }
    }
    if (err) {
        throw std::invalid_argument("--deltas-dir '" + dir + "': " + err.message());
    }
    return names;
}

// A look that may hang, and so has copies of all that it uses.
struct view {
    std::set<std::string> names;
    server_delta_sighting sighting;
};

static void compare(const std::string & dir, const std::set<std::string> & before, view & now, server_delta_life & life) {
    for (const std::string & name : now.names) {
        if (before.count(name) > 0 || life.show()) {
            continue;
        }
        const std::string path  = (fs::path(dir) / name).string();
        const std::string stem  = name.substr(0, name.size() - SUFFIX.size());
        const std::string fault = is_file(path) ? server_delta_name_fault(stem) : "it is no regular file";
        if (fault.empty()) {
            now.sighting.added.emplace_back(stem, server_delta_stamp::of(path));
        } else {
            SRV_WRN("--deltas-dir: %s is left out: %s\n", safe_json_to_str(name).c_str(), fault.c_str());
        }
    }
    for (const std::string & name : before) {
        if (now.names.count(name) == 0) {
            now.sighting.gone.push_back((fs::path(dir) / name).string());
        }
    }
}

server_delta_sighting server_delta_folder::look(const std::vector<server_delta_stamp> & watched) {
    const std::lock_guard<std::mutex> lock(mutex); // who waits here asks for what is being looked at
    if ((dir.empty() && watched.empty()) || !hanging.expired() ||
        (was_read && std::chrono::steady_clock::now() - read_at < READ_INTERVAL)) {
        return {};
    }
    const auto token = std::make_shared<char>(); // lives in `io`
    const auto io    = [token, dir = dir, before = seen, watched](server_delta_life & life) {
        view now;
        if (!dir.empty()) {
            now.names = read_names(dir, life);
            compare(dir, before, now, life);
        }
        for (const auto & stamp : watched) {
            if (!life.show() && !(server_delta_stamp::of(stamp.path) == stamp)) {
                now.sighting.changed.push_back(stamp);
            }
        }
        return now;
    };
    was_read    = true;
    auto result = server_delta_do_io<view>("--deltas-dir '" + dir + "'", io, [] { return true; });
    read_at     = std::chrono::steady_clock::now();
    if (!result.value) {
        hanging = token;
        throw std::invalid_argument(result.err);
    }
    seen = std::move(result.value->names);
    return std::move(result.value->sighting);
}

// Returns the one delta in a directory, which is what a download of a repository leaves; the directory itself where it has none. Throws
// server_delta_error where there are several.
static fs::path only_delta_in(const fs::path & path, const std::string & file, server_delta_life & life) {
    const auto names = read_names(path.string(), life);
    if (names.size() > 1) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST, "directory '" + file + "': has " + std::to_string(names.size()) + " files *" +
                                                                 SUFFIX + ", expected one. Name the file");
    }
    return names.empty() ? path : path / *names.begin();
}

// What find() does, on a thread that may hang.
static server_delta_stamp find_in(const std::string & dir, const std::string & file, server_delta_life & life) {
    std::error_code err;
    fs::path        path = fs::path(dir) / fs::path(file);
    if (fs::is_directory(path, err) && is_inside(dir, path)) {
        path = only_delta_in(path, file, life);
    }
    if (!is_file(path) || !is_inside(dir, path.parent_path())) {
        throw server_delta_error(ERROR_TYPE_NOT_FOUND, "file '" + file + "': not found in --deltas-dir");
    }
    return server_delta_stamp::of(path.string());
}

static server_delta_stamp look_with(std::function<server_delta_stamp(server_delta_life &)> io, const std::string & file,
                                    const server_should_stop & should_stop) {
    const auto result = server_delta_do_io<server_delta_stamp>(file, std::move(io), [&] { return !should_stop || !should_stop(); });
    if (!result.value) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, result.err);
    }
    return *result.value;
}

server_delta_stamp server_delta_folder::find(const std::string & file, const server_should_stop & should_stop) const {
    if (server_delta_is_address(file)) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST,
                                 "file " + server_delta_shown_address(file) +
                                     ": is an address, which belongs into \"uri\". Expected a path inside --deltas-dir");
    }
    if (dir.empty()) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST, "files are loaded from --deltas-dir only, and this server has none");
    }
    std::error_code err;
    const fs::path  named(file);
    const fs::path  relative =
        named.is_absolute() ? named.lexically_relative(fs::absolute(dir, err)) : named; // Elsewhere: with '..', or empty.
    const bool has_dots    = std::any_of(relative.begin(), relative.end(), [](const fs::path & part) { return part.string()[0] == '.'; });
    const bool has_control = std::any_of(file.begin(), file.end(), [](unsigned char ch) { return ch < ' '; });
    if (relative.empty() || relative.is_absolute() || relative.has_root_path() || has_dots || has_control ||
        file.find('\\') != std::string::npos) {
        throw server_delta_error(ERROR_TYPE_INVALID_REQUEST,
                                 "file " + safe_json_to_str(file) +
                                     ": expected a path inside --deltas-dir, relative to it or whole, without '..' and hidden files");
    }
    return look_with([dir = dir, file = relative.string()](server_delta_life & life) { return find_in(dir, file, life); }, file,
                     should_stop);
}

server_delta_stamp server_delta_look_at(const std::string & path, const server_should_stop & should_stop) {
    return look_with([path](server_delta_life &) { return server_delta_stamp::of(path); }, path, should_stop);
}
