// mapped-file.h: a whole file, mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace dqrelo {

// Unmaps when destroyed. The data is page-aligned. Another program that shortens the file while it is mapped makes reads of the lost part
// fault: files in use are to be replaced by renaming, not rewritten in place.
class mapped_file {
public:
    // Returns nullptr with the reason in `err` (without the path).
    static std::unique_ptr<mapped_file> open(const std::string & path, std::string & err);

    ~mapped_file();
    mapped_file(const mapped_file &)             = delete;
    mapped_file & operator=(const mapped_file &) = delete;

    const uint8_t * data() const { return data_; }
    size_t          n_bytes() const { return n_bytes_; }

    // From here on small parts will be read: stops the system from reading ahead.
    void expect_random_access() const;

    // Reads every page of [offset_bytes, offset_bytes + n_bytes) into memory.
    void prefault(size_t offset_bytes, size_t n_bytes) const;

    // Takes the pages that lie wholly in [offset_bytes, offset_bytes + n_bytes) out of this process's memory; the system may keep the file
    // cached.
    void discard(size_t offset_bytes, size_t n_bytes) const;

private:
    mapped_file() = default;

    const uint8_t * data_    = nullptr;
    size_t          n_bytes_ = 0;
    void *          handle_  = nullptr; // what the platform needs to unmap
};

} // namespace dqrelo
