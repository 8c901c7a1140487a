// sha256.h: SHA-256 of data that may be long, of several pieces side by side, and while it is still being read.
#pragma once

#include "file/mapped-file.h"
#include "file/sha256-kernels.h"

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dqrelo {

struct sha256_input {
    const void * data;
    size_t       n_bytes;
};

// Returns the number of threads that pay for the inputs on this machine: 1 for a few MiB. There is one more than cores, because the one
// that reads waits for the disk meanwhile.
size_t sha256_n_threads(const std::vector<sha256_input> & inputs);

// is_hashed(i, end): what lies in input i before the address `end` is read no more. `end` never goes back; the last call for an input says
// its end. There are no two calls for one input at a time.
using is_hashed_fn = std::function<void(size_t, const void *)>;

// Hashes inputs, the first ones first, as far as their bytes have arrived in memory.
class sha256_hashing {
public:
    // Starts n_threads - 1 threads, which wait for bytes. The inputs' memory must outlive the object. Each is paced (pacer.h). `is_hashed`,
    // if given, is called on any of them, at once, so that a MiB or less of what it speaks of is still in a cache. What it throws comes out
    // of finish().
    sha256_hashing(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads,
                   const is_decoding_fn & is_decoding, const is_hashed_fn & is_hashed = {});

    // Ends them, wherever they are.
    ~sha256_hashing();
    sha256_hashing(const sha256_hashing &)             = delete;
    sha256_hashing & operator=(const sha256_hashing &) = delete;

    // Every byte of an input that lies at a lower address than `end` is there, and stays as it is.
    void arrived(const void * end);

    // All bytes are there: this thread helps until all is done. `hex` has the SHA-256 of each input afterwards, 64 lower-case hex digits,
    // in the order of the inputs. Returns false where `is_aborted` ended it, which is asked on this thread only, every MiB or less and
    // while it waits for others.
    bool finish(const is_aborted_fn & is_aborted, std::vector<std::string> & hex);

private:
    struct impl;
    std::unique_ptr<impl> p;
};

} // namespace dqrelo
