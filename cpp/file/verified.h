// verified.h: which files this process has verified, so that a delta that comes back into memory need not be hashed again.
#pragma once

#include <string>

namespace dqrelo {

// Whether this very file, unchanged since (mapped_file::identity), was remembered. No file with an empty identity is. Thread-safe, as is
// remember_verified().
bool was_verified(const std::string & identity);

// All digests of the file were right.
void remember_verified(const std::string & identity);

} // namespace dqrelo
