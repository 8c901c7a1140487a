#include "file/verified.h"

#include <mutex>
#include <unordered_set>

namespace dqrelo {

// More than a server has deltas; past it the set starts anew, which costs time only.
static constexpr size_t N_VERIFIED_MAX = 100000;

static std::mutex                      mutex;
static std::unordered_set<std::string> verified; // Guarded by it.

bool was_verified(const std::string & identity) {
    const std::lock_guard<std::mutex> lock(mutex);
    return verified.count(identity) > 0;
}

void remember_verified(const std::string & identity) {
    if (identity.empty()) {
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    if (verified.size() == N_VERIFIED_MAX) {
        verified.clear();
    }
    verified.insert(identity);
}

} // namespace dqrelo
