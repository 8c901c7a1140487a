// verified.h: which files this process has verified, so that a delta that comes back into memory need not be hashed again.
#pragma once

#include "file/mapped-file.h"

#include <string>

namespace dqrelo {

class delta_file;

// Calls delta_file::verify, unless it passed before for the very same file, unchanged since (mapped_file::identity). Thread-safe. Returns
// false with one line in `err`.
bool verify_once(const delta_file & file, const is_aborted_fn & is_aborted, std::string & err);

} // namespace dqrelo
