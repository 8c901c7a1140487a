// mapped-file.h: a whole file, mapped read-only or read into memory.
#pragma once

#include "file/pacer.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dqrelo {

class ahead_of_reader;

// Asked between two pieces of a long read; true ends it.
using is_aborted_fn = std::function<bool()>;

// The data is page-aligned, and goes with the object. Regular files only: others may block, or never end.
class mapped_file {
public:
    enum class mode {
        // A read of what another program cut off the file faults: the file must be replaced by renaming, not rewritten in place.
        map,
        // The data is memory of this process: what fetch() has read stays as it was read.
        copy,
    };

    // Returns nullptr with the reason in `err` (without the path). Of a copy no byte is there yet.
    static std::unique_ptr<mapped_file> open(const std::string & path, mode how, std::string & err);

    // Brings the first n_bytes into memory, so that reading them waits for nothing. Returns false with the reason in `err`.
    bool fetch(size_t n_bytes, const is_aborted_fn & is_aborted, std::string & err);

    ~mapped_file();
    mapped_file(const mapped_file &)             = delete;
    mapped_file & operator=(const mapped_file &) = delete;

    const uint8_t * data() const { return data_; }
    size_t          n_bytes() const { return n_bytes_; }

    // Equal for two files only if what was fetched of them is the same: device, inode, size and times of the file that was opened. The time
    // of the last change of its inode is among them, which nobody can set back. Empty where the file changed while it was read, or too
    // lately for the clock's steps, or where the platform does not tell.
    const std::string & identity() const { return identity_; }

    // From here on all of it will be fetched: what that needs is made ready beside the reading. `is_first`: it was not read before. Such a
    // copy is read past the page cache where others decode: that costs no core anything, and whether it will be wanted again is not known.
    void expect_whole(const is_decoding_fn & is_decoding, bool is_first);

    // Whether it is read past the page cache: fetch() takes hardly any processor time.
    bool is_past_page_cache() const { return n_past_ > 0; }

    // From here on small parts will be read: stops the system from reading ahead.
    void expect_random_access() const;

    // Lets what was fetched of a copy be written to, until end_changes(). Returns false for a map.
    bool begin_changes();
    void end_changes();

    // Takes the pages that lie wholly in [offset_bytes, offset_bytes + n_bytes) out of this process's memory. Of a map they can be read
    // again, of a copy they are lost.
    void discard(size_t offset_bytes, size_t n_bytes) const;

private:
    mapped_file() = default;

    bool fetch_piece(size_t offset_bytes, size_t n_bytes, std::string & err);

    const uint8_t * data_       = nullptr;
    size_t          n_bytes_    = 0;
    size_t          n_reserved_ = 0; // bytes of a copy's copy_memory; 0: it is a map
    size_t          n_fetched_  = 0;
    bool            is_fresh_   = false;   // of a copy: it has no pages where nothing was fetched
    bool            is_changed_ = false;   // between begin_changes() and end_changes()
    size_t          n_past_     = 0;       // bytes that are read past the page cache at once; 0: it is read through that
    int             fd_         = -1;      // Stays open while a copy is not complete.
    void *          handle_     = nullptr; // Holds what the platform needs.
    std::string     identity_;

    std::vector<std::shared_ptr<ahead_of_reader>> ahead_; // What is done beside the reading of a copy.
};

} // namespace dqrelo
