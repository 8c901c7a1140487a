// copy-memory.h: memory of this process that files are read into (mapped_file::mode::copy).
//
// The system clears fresh memory first, which takes as long as to read a file that it has in its cache. Where one file goes to make room
// for another, its memory can be the other one's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dqrelo {

// Page-aligned. It is zeros, or has what an earlier file left.
struct copy_memory {
    uint8_t * data       = nullptr; // NULL: there is none, and errno says why.
    size_t    n_bytes    = 0;       // bytes that are used
    size_t    n_reserved = 0;       // bytes of addresses, from data on
    bool      is_fresh   = false;   // It has no pages yet.
};

// Returns memory of n_bytes, which is written to.
copy_memory take_copy_memory(size_t n_bytes);

// The memory is not used any more.
void leave_copy_memory(const copy_memory & memory);

// From here on the memory of one file that goes is kept for the next one that fits, or else no longer; what was kept is freed.
void keep_copy_memory(bool keep);

} // namespace dqrelo
