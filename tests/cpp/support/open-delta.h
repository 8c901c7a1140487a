// open-delta.h: opens the bytes of a delta file, and tells how they are refused. A test defines PATH, the file that they are written to,
// and uses dqrelo and testing.
#pragma once

static std::unique_ptr<delta_file> open_bytes(const std::string & bytes, std::string & err, const delta_file::options & options = {}) {
    write_file(PATH, bytes);
    return delta_file::open(PATH, options, err);
}

static delta_file::options with_digests() {
    delta_file::options options;
    options.digests = delta_file::digest_check::always;
    return options;
}

// Returns true if the file is refused with one line that has `part` in it.
static bool refused(const std::string & bytes, const std::string & part, const delta_file::options & options = {}) {
    std::string err;
    const auto  delta = open_bytes(bytes, err, options);
    const bool  good  = !delta && err.find(part) != std::string::npos && err.find('\n') == std::string::npos && err.find(PATH) == 0;
    if (!good) {
        printf("  expected '%s', got %s\n", part.c_str(), delta ? "no error" : err.c_str());
    }
    return good;
}

static bool same_bytes(const void * data, const std::string & bytes, size_t offset = 0, size_t n = std::string::npos) {
    const std::string part = bytes.substr(offset, n);
    return memcmp(data, part.data(), part.size()) == 0;
}
