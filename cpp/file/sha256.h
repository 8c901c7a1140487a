// sha256.h: SHA-256 of data that may be long.
#pragma once

#include "file/mapped-file.h"

#include <cstddef>
#include <string>

namespace dqrelo {

// The SHA-256 of the data as 64 lower-case hex digits. Returns false where `is_aborted`, which is asked every few MiB, ended it.
bool sha256_hex(const void * data, size_t n_bytes, const is_aborted_fn & is_aborted, std::string & hex);

// Whether this CPU has instructions for it, which are used then: six times as fast.
bool has_sha256_instructions();

} // namespace dqrelo
